"""Installs the dashboard on the application: static files, pages, error pages. Called by `app/main.py`.

The pages are an application of their own, mounted at the root after everything else: its errors are
pages, the API's are JSON, and neither knows the other.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.core.context import Context
from app.core.errors import AppError
from app.dashboard import (
    api_keys,
    create,
    errors,
    files,
    graders,
    jobs,
    login,
    models,
    playground,
    reference,
    render,
    rollouts,
    webhooks,
)
from app.dashboard.live import Hub
from app.dashboard.static import Static
from app.dashboard.visitor import refuse_nul


def install(app: FastAPI, *, document: Mapping[str, Any]) -> None:
    """Mount the dashboard on `app`, whose `state.context` is set; the last thing to be mounted.

    `document` is the API's OpenAPI document, for the reference page.
    """
    context: Context = app.state.context
    pages = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, dependencies=[Depends(refuse_nul)])
    pages.state.context = context
    pages.state.document = document
    # Its streams are the application's to end.
    app.state.hub = pages.state.hub = Hub(context.db)
    # create before jobs: /finetune/new is not a job's id.
    for module in (
        login,
        create,
        rollouts,
        jobs,
        graders,
        files,
        models,
        playground,
        webhooks,
        api_keys,
        reference,
    ):
        pages.include_router(module.router)
    pages.add_exception_handler(AppError, errors.show_app_error)
    pages.add_exception_handler(HTTPException, errors.show_http_error)
    pages.add_exception_handler(RequestValidationError, errors.show_invalid)
    pages.add_exception_handler(Exception, errors.show_crash)
    app.mount("/static", Static(directory=render.STATIC), name="static")
    app.mount("/", pages, name="dashboard")

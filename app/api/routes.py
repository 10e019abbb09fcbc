"""Assembles the API: an application of its own, so that its errors and guards never touch a page.

Called by `app/main.py`, which mounts it under /v1.
"""

from fastapi import FastAPI
from starlette.middleware import Middleware

from app.api import (
    checkpoints,
    completions,
    evaluations,
    events,
    exports,
    files,
    graders,
    handlers,
    jobs,
    models,
    multipart,
    permissions,
    responses,
    rollouts,
    serving,
    uploads,
    webhooks,
)
from app.api.background import Background
from app.api.guard import KeyGuard
from app.core.context import Context

NOUNS = (
    files,
    uploads,
    events,
    checkpoints,
    rollouts,
    evaluations,
    graders,
    jobs,
    # Before models, whose names may hold slashes.
    exports,
    serving,
    models,
    permissions,
    webhooks,
    completions,
    responses,
)


def api(context: Context) -> FastAPI:
    """Return the API over `context`."""
    app = FastAPI(
        title="Tunesmith",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # Client generators name their functions after it.
        generate_unique_id_function=lambda route: route.name,
        middleware=[Middleware(KeyGuard, context=context)],
    )
    app.state.context = context
    app.state.uploads = multipart.upload_slots()
    app.state.background = Background(context)
    handlers.install(app)
    for noun in NOUNS:
        app.include_router(noun.router)
    return app

"""Says whether the web process can do its work. Without a key; asked by `make up` and containers."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.context import Context

router = APIRouter()


@router.get("/healthz", include_in_schema=False)
def health(request: Request) -> JSONResponse:
    """Answer `ok` when the database answers."""
    context: Context = request.app.state.context
    try:
        with context.db.reading() as session:
            session.execute(select(1))
    except SQLAlchemyError:
        return JSONResponse({"status": "the database can't be reached"}, status_code=503)
    return JSONResponse({"status": "ok"})

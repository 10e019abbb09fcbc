"""Assembles the web process: the API under /v1, the dashboard beside it, both behind the same guard.

Decides nothing. `python -m app.main` serves it; the database is brought up to date before that, by
the commands.
"""

import logging
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from app.api import health
from app.api.document import document
from app.api.guard import HostGuard
from app.api.routes import api
from app.api.stamp import Stamp
from app.core.context import Context
from app.core.settings import Settings
from app.dashboard.live import Hub
from app.dashboard.routes import install
from app.services import heartbeats

BEAT_SECONDS = 5.0
GRACE_SECONDS = 5
NOT_STARTED = 3

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the whole web application; its parts are opened at their first use."""
    context = Context.build(settings or Settings())
    app = FastAPI(
        title="Tunesmith",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan,
        middleware=[
            Middleware(Stamp, organization=context.settings.organization),
            Middleware(HostGuard, settings=context.settings),
        ],
    )
    app.state.context = context
    app.include_router(health.router)
    wire = api(context)
    app.state.background = wire.state.background
    described = document(wire)
    # Without a key: it says what any reader of this project's source knows.
    app.router.routes.append(Route("/v1/openapi.json", endpoint=lambda _: JSONResponse(described)))
    below = Mount("/v1", app=wire)
    # Starlette's own pattern ends at a line end, and the answer would be no envelope.
    below.path_regex = re.compile(r"^/v1/(?P<path>(?s:.*))$")
    app.router.routes.append(below)
    # A mount begins at its slash; without one the answer would be a page.
    app.router.routes.append(Route("/v1", endpoint=wire, include_in_schema=False))
    install(app, document=described)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(context, ended), name="heartbeat", daemon=True)
    beating.start()
    app.state.background.start()
    yield
    await app.state.background.stop()
    ended.set()
    beating.join()
    context.db.dispose()


def _beat(context: Context, ended: threading.Event) -> None:
    while True:
        try:
            with context.db.transaction() as session:
                heartbeats.beat(session, part="web", detail={"address": context.settings.address})
        except SQLAlchemyError as problem:  # boundary: the database may be back at the next beat
            logger.warning("no heartbeat written: %s", problem)
        if ended.wait(BEAT_SECONDS):
            return


class Server(uvicorn.Server):
    """Serves the application, and first ends the streams of open pages when it has to stop."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.hub: Hub = app.state.hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. An open page would hold this up for the whole grace, and be cut off in the middle."""
        self.hub.end()
        await super().shutdown(sockets)


def main() -> None:
    """Serve until a signal ends the process."""
    settings = Settings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # Stamp writes the access log: uvicorn's would hold log-in addresses whole.
        access_log=False,
        log_config=None,
        server_header=False,
        # Longer than any client keeps an idle connection, or it would send into one just closed.
        timeout_keep_alive=75,
        # An answer that is still streamed would hold up an end for as long as it takes.
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = Server(app, config)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()

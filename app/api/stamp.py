"""The outermost layer: an id, a duration and a log line for every answer. Called by `app/main.py`.

The log line has the path without its query: a log-in address carries a secret there.

Source: OpenAI's response headers (`x-request-id`, `openai-processing-ms`, `openai-version`).
"""

import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import ids

VERSION = "2020-10-01"

logger = logging.getLogger(__name__)


def is_api(path: str) -> bool:
    """Say whether a path belongs to the API rather than to the dashboard."""
    return path == "/v1" or path.startswith("/v1/")


class Stamp:
    """Gives each request its id and puts it on the answer."""

    def __init__(self, app: ASGIApp, *, organization: str) -> None:
        self.app = app
        self.organization = organization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and stamp what comes back."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{ids.random_hex(32)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_api(scope["path"]):
                    headers["openai-processing-ms"] = f"{(time.perf_counter() - started) * 1000:.0f}"
                    headers["openai-version"] = VERSION
                    headers["openai-organization"] = self.organization
                    headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        finally:
            took = (time.perf_counter() - started) * 1000
            # %r: a path may hold line ends, which must not forge a line of their own.
            logger.info("%s %s %r %d %.0fms", request_id, scope["method"], scope["path"], status, took)

"""Responses in the background: made by this process while nobody waits, and retrieved when they are ready.

Each has a row with a lease that is renewed while its model answers; a cancelled or deleted one is noticed
then. What a process that died leaves is reported as failed once its lease is over. Called by `responses.py`.

Source: https://platform.openai.com/docs/guides/background
"""

import asyncio
import logging
from typing import Any

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.core.context import Context
from app.core.engines import Served
from app.core.errors import AppError, RateLimited, Unavailable
from app.services import responses
from app.services.chat_request import ChatRequest
from app.services.response_events import Growth

# At once in one process. The engine's own queue is bounded too.
MOST = 256
RENEW_SECONDS = 1.0
_RETRY_SECONDS = 2

logger = logging.getLogger(__name__)


class Background:
    """The responses this process is making."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._making: dict[str, asyncio.Task[None]] = {}

    async def begin(
        self, project_id: str, served: Served, growth: Growth, chat: ChatRequest
    ) -> dict[str, Any]:
        """Begin to make a response and return it as it stands: queued. Raises: RateLimited."""
        if len(self._making) >= MOST:
            raise RateLimited(
                f"{MOST} responses are made in the background already. Please try again in a moment.",
                headers={"retry-after": str(_RETRY_SECONDS)},
            )
        queued = growth.response()
        await to_thread.run_sync(self._store, project_id, growth)
        task = asyncio.create_task(self._make(served, growth, chat))
        self._making[growth.id] = task
        task.add_done_callback(lambda _: self._making.pop(growth.id, None))
        return queued

    async def stop(self) -> None:
        """Give up what is being made, so that whoever asks hears of it."""
        unfinished = dict(self._making)
        for task in unfinished.values():
            task.cancel()
        await asyncio.gather(*unfinished.values(), return_exceptions=True)
        if unfinished:
            await to_thread.run_sync(self._abandon, list(unfinished))

    async def _make(self, served: Served, growth: Growth, chat: ChatRequest) -> None:
        answering = asyncio.create_task(self._answer(served, growth, chat))
        try:
            while not (await asyncio.wait((answering,), timeout=RENEW_SECONDS))[0]:
                if not await to_thread.run_sync(self._renewed, growth.response()):
                    return
            await to_thread.run_sync(self._finish, growth.response())
        finally:
            answering.cancel()

    async def _answer(self, served: Served, growth: Growth, chat: ChatRequest) -> None:
        try:
            await responses.answer(served, growth, chat)
        except AppError as problem:
            growth.failing(problem)
        except Exception:  # boundary: whoever retrieves the response must hear of its end
            logger.exception("a response in the background failed")
            growth.failing(Unavailable("The service failed while it made this response."))

    def _store(self, project_id: str, growth: Growth) -> None:
        with self._context.db.transaction() as session:
            responses.store(session, project_id=project_id, growth=growth)

    def _renewed(self, answer: dict[str, Any]) -> bool:
        try:
            with self._context.db.transaction() as session:
                return responses.renew(session, answer)
        except SQLAlchemyError as problem:  # boundary: the lease outlasts a short absence of the database
            logger.warning("the lease of a response was not renewed: %s", problem)
            return True

    def _finish(self, answer: dict[str, Any]) -> None:
        try:
            with self._context.db.transaction() as session:
                responses.finish(session, answer)
        except SQLAlchemyError as problem:  # boundary: its lease ends, and it is reported as failed
            logger.error("the end of a response was not stored: %s", problem)

    def _abandon(self, response_ids: list[str]) -> None:
        try:
            with self._context.db.transaction() as session:
                responses.abandon(session, response_ids)
        except SQLAlchemyError as problem:  # boundary: their leases end by themselves
            logger.error("responses in the background were not given up: %s", problem)

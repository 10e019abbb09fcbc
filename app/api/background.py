"""Responses in the background: made by this process while nobody waits, and retrieved when they are ready.

Each has a row with a lease. One task renews the leases of all of them, and gives up those that were cancelled
or deleted meanwhile. What a process that died leaves is reported as failed once its lease is over. Called by
`responses.py`.

Source: https://platform.openai.com/docs/guides/background
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core import clock
from app.core.context import Context
from app.core.engines import Served
from app.core.errors import AppError, RateLimited, Unavailable
from app.services import responses
from app.services.chat_request import ChatRequest
from app.services.response_events import Growth

P = ParamSpec("P")
T = TypeVar("T")

# Begun and not ended, in one process and of one project.
MOST = 256
MOST_OF_PROJECT = 64
# So many ask an engine at once: its queue is bounded, and whoever waits for an answer shares it.
AT_ONCE = 32
RENEW_SECONDS = 1.0
# How long an engine that is busy or down may be so.
PATIENCE_SECONDS = 600.0
# What is being written down when the process stops may take so long.
STOP_SECONDS = 5.0
# Between two tries of an engine that is busy, and told to whoever is one too many.
RETRY_SECONDS = 2

logger = logging.getLogger(__name__)


class Background:
    """The responses this process is making."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._places: Counter[str] = Counter()
        self._making: dict[str, tuple[Growth, asyncio.Task[None]]] = {}
        # Those whose beginning is written down, and those whose end is about to be.
        self._begun: set[str] = set()
        self._ending: set[str] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        # Threads of its own: a slow database must not take those that answer everybody else.
        self._threads = CapacityLimiter(2)
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep what is begun."""
        self._keeper = asyncio.create_task(self._keep())

    async def begin(
        self, project_id: str, served: Served, growth: Growth, chat: ChatRequest
    ) -> dict[str, Any]:
        """Begin to make a response and return it as it stands: queued. Raises: RateLimited."""
        queued = growth.response()
        self._take_place(project_id)
        try:
            await self._write(responses.store, project_id=project_id, growth=growth)
        except BaseException:
            self._places[project_id] -= 1
            raise
        task = asyncio.create_task(self._make(served, growth, chat))
        self._making[growth.id] = growth, task
        task.add_done_callback(lambda _: self._made(project_id, growth.id))
        return queued

    async def stop(self) -> None:
        """Give up what is being made, so that whoever asks hears of it."""
        if self._keeper is not None:
            self._keeper.cancel()
        unfinished = {response_id: task for response_id, (_, task) in self._making.items()}
        if not unfinished:
            return
        for response_id, task in unfinished.items():
            if response_id not in self._ending:
                task.cancel()
        await asyncio.wait(unfinished.values(), timeout=STOP_SECONDS)
        with suppress(SQLAlchemyError):  # their leases end by themselves
            await self._write(responses.abandon, list(unfinished))

    def _take_place(self, project_id: str) -> None:
        if self._places.total() >= MOST:
            whose, most = "by this service", MOST
        elif self._places[project_id] >= MOST_OF_PROJECT:
            whose, most = "for this project", MOST_OF_PROJECT
        else:
            self._places[project_id] += 1
            return
        raise RateLimited(
            f"{most} responses are made in the background {whose} already. Please try again in a moment.",
            headers={"retry-after": str(RETRY_SECONDS)},
        )

    def _made(self, project_id: str, response_id: str) -> None:
        self._places[project_id] -= 1
        del self._making[response_id]
        self._begun.discard(response_id)
        self._ending.discard(response_id)

    async def _make(self, served: Served, growth: Growth, chat: ChatRequest) -> None:
        try:
            async with self._turns:
                await self._answer(served, growth, chat)
        except AppError as problem:
            growth.failing(problem)
        except Exception:  # boundary: whoever retrieves the response must hear of its end
            logger.exception("a response in the background failed")
            growth.failing(Unavailable("The service failed while it made this response."))
        self._ending.add(growth.id)
        answer = growth.response()
        while True:
            try:
                await self._write(responses.finish, answer)
                return
            except SQLAlchemyError as problem:
                logger.warning("the end of a response is not stored yet: %s", problem)
                await asyncio.sleep(RENEW_SECONDS)

    async def _answer(self, served: Served, growth: Growth, chat: ChatRequest) -> None:
        """Let a response grow to its end; an engine that is busy or away is asked again.

        Raises: AppError, of an engine that has begun to answer, or for longer than is bearable.
        """
        last = clock.now() + PATIENCE_SECONDS
        while True:
            try:
                await responses.answer(served, growth, chat)
                return
            except (RateLimited, Unavailable) as problem:
                passes = isinstance(problem, RateLimited) or problem.retry_after is not None
                if growth.status != "queued" or not passes or clock.now() > last:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            making = {response_id: growth for response_id, (growth, _) in self._making.items()}
            if not making:
                continue
            begun = {name for name, growth in making.items() if growth.status == "in_progress"} - self._begun
            try:
                wanted = await self._write(responses.renew, list(making), begun=begun)
            except SQLAlchemyError as problem:  # boundary: a lease outlasts a short absence of the database
                logger.warning("the leases of responses were not renewed: %s", problem)
                continue
            still = self._making.keys()
            self._begun |= begun & wanted & still
            for response_id in (making.keys() & still) - wanted - self._ending:
                self._making[response_id][1].cancel()

    async def _write(
        self, change: Callable[Concatenate[Session, P], T], *args: P.args, **more: P.kwargs
    ) -> T:
        def write() -> T:
            with self._context.db.transaction() as session:
                return change(session, *args, **more)

        return await to_thread.run_sync(write, limiter=self._threads)

"""Answers that take their time: given up when the client goes, sent as events where it wants a stream.

No session is held meanwhile. Called by the routes of completions and responses.

Source: WHATWG, server-sent events; an error inside a stream as OpenAI sends it.
"""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from app.core.errors import AppError, Unavailable

T = TypeVar("T")

# A proxy that gathers pieces would make one of them all.
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_ENDED = "[DONE]"

logger = logging.getLogger(__name__)


async def while_present(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` gives; it is cancelled when the client goes away. Raises: ClientDisconnect."""
    done: list[T] = []
    failed: list[Exception] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            done.append(await work)
        except Exception as problem:  # carried out of the group, which would wrap it
            failed.append(problem)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not done:
        raise ClientDisconnect
    return done[0]


async def events(
    request: Request, pieces: AsyncGenerator[Mapping[str, Any]], *, named: bool = False
) -> StreamingResponse:
    """Return the stream of `pieces` once the first is there, so that a refusal is still a status of its own.

    `named` gives each event its type and ends without the mark, as the Responses API has it.
    """
    first = await while_present(request, anext(pieces))
    return StreamingResponse(
        _lines(first, pieces, named=named), media_type="text/event-stream", headers=_HEADERS
    )


async def _lines(
    first: Mapping[str, Any], pieces: AsyncGenerator[Mapping[str, Any]], *, named: bool
) -> AsyncIterator[str]:
    # Closed whatever happens: that is what ends the engine's work when the client has gone.
    async with aclosing(pieces):
        last = first
        try:
            yield _event(first, named=named)
            async for piece in pieces:
                last = piece
                yield _event(piece, named=named)
        except (AppError, SQLAlchemyError) as problem:
            # The status is out already. A stream that ends like this is not marked as done.
            told = _told(problem)
            if named:
                told = told["error"] | {"type": "error", "sequence_number": last["sequence_number"] + 1}
            yield _event(told, named=named)
            return
    if not named:
        yield f"data: {_ENDED}\n\n"


def _event(piece: Mapping[str, Any], *, named: bool) -> str:
    head = f"event: {piece['type']}\n" if named else ""
    return f"{head}data: {json.dumps(piece, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _told(problem: AppError | SQLAlchemyError) -> dict[str, Any]:
    if isinstance(problem, SQLAlchemyError):
        logger.error("the end of a stream was not stored: %s", problem)
        problem = Unavailable("The answer could not be stored: the database can't be reached at the moment.")
    return problem.envelope()

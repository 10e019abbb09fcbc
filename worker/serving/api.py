"""The face of the inference process: OpenAI's chat completions, and what managing models needs.

The web process is its only client as a rule, so it is asked for models by their ids and answers with OpenAI's
envelopes. Nothing here computes. Built by `__main__.py`.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from app.core import refusals
from app.core.context import Context
from app.core.errors import AppError, InvalidRequest, RateLimited, Unauthenticated, Unavailable
from app.core.ids import new_id
from worker import models
from worker.serving.choices import Piece, whole
from worker.serving.house import RETRY_SECONDS, Base, House
from worker.serving.places import Place, find
from worker.serving.request import ChatRequest
from worker.serving.ticket import Event, Ticket, Usage

logger = logging.getLogger("worker.serving")


class Gone(Exception):
    """The client does not listen any more."""


@dataclass(slots=True)
class Answer:
    """An answer on its way: what was asked, and its events as they come."""

    wanted: ChatRequest
    ticket: Ticket
    events: "asyncio.Queue[Event | None]"
    watch: "asyncio.Task[None]"

    async def next(self) -> Piece | Usage:
        """Return the next event. Raises: AppError, Gone."""
        event = await self.events.get()
        if event is None:
            raise Gone
        if isinstance(event, AppError):
            raise event
        return event

    def let_go(self) -> None:
        """Free what it holds, be it that it has not ended."""
        self.ticket.gone = True
        self.watch.cancel()


class Desk:
    """Takes requests in and hands answers out, for one house. `waiting`: requests without a first token."""

    def __init__(self, context: Context, house: House) -> None:
        self._context = context
        self._house = house
        self.waiting = 0

    async def load(self, model_id: Any) -> Place:
        """Have a model in memory, with its adapter. Raises: AppError."""
        if not isinstance(model_id, str):
            raise refusals.missing("model")
        place, base = await self._ready(model_id)
        await asyncio.wrap_future(self._house.bring(base, place.adapter_name, place.adapter))
        return place

    async def answer(self, request: Request) -> Response:
        """Answer one chat completion. Raises: RateLimited when too many wait already."""
        most = self._house.limits.waiting
        # Counted from here on: loading, templates and grammars cost more than the queue itself.
        if self.waiting >= most:
            raise RateLimited(
                f"{most} requests wait already. Please try again in a moment.",
                headers={"retry-after": str(RETRY_SECONDS)},
            )
        self.waiting += 1
        try:
            answer = await self._begin(request)
            try:
                # What goes wrong before the first token is still an answer with a status of its own.
                first = await answer.next()
            except BaseException:
                answer.let_go()
                raise
        finally:
            self.waiting -= 1
        head = {"id": new_id("completion"), "created": int(time.time()), "model": answer.wanted.model}
        if answer.wanted.stream:
            return StreamingResponse(_stream(head, answer, first), media_type="text/event-stream")
        try:
            pieces, usage = await _collect(answer, first)
        finally:
            answer.let_go()
        return JSONResponse(_completion(head, answer.wanted, pieces, usage))

    async def _ready(self, model_id: str) -> tuple[Place, Base]:
        place = await run_in_threadpool(find, self._context, model_id)
        locate = partial(models.locate, self._context.settings, place.base)
        # Shielded: a client that goes away must not take the model from those who wait for it too.
        return place, await asyncio.shield(asyncio.wrap_future(self._house.base(place.base, locate)))

    async def _begin(self, request: Request) -> Answer:
        wanted = ChatRequest.read(await _body(request))
        place, base = await self._ready(wanted.model)
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        source = f"{request.headers.get('openai-project', '')} {wanted.model}"
        ticket = await run_in_threadpool(base.preparing.ticket, wanted, place, source=source, emit=emit)
        self._house.submit(base, ticket)
        return Answer(wanted, ticket, events, asyncio.create_task(_watch(request, ticket, events)))


def create_app(context: Context, house: House) -> FastAPI:
    """Return the application; its house runs as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        house.start()
        yield
        await run_in_threadpool(house.stop)

    app = FastAPI(title="Tunesmith inference", openapi_url=None, lifespan=lifespan)
    desk, key = Desk(context, house), context.settings.inference_key

    @app.middleware("http")
    async def check_key(request: Request, go_on: Any) -> Response:
        given = request.headers.get("authorization", "")
        if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            return _error(Unauthenticated("The key of the inference process is another one."))
        response: Response = await go_on(request)
        return response

    # On the event loop: the thread pool may be busy with conversations.
    @app.get("/health")
    async def health() -> dict[str, Any]:
        if not house.goes_on:
            raise Unavailable("Nothing computes here at the moment.", retry_after=RETRY_SECONDS)
        return {"status": "ok", "waiting": desk.waiting, "models": house.describe()}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": house.describe()}

    @app.post("/v1/models/load")
    async def load(request: Request) -> dict[str, Any]:
        place = await desk.load((await _body(request)).get("model"))
        return {"id": place.model, "loaded": True}

    @app.post("/v1/models/unload")
    async def unload(request: Request) -> dict[str, Any]:
        name = (await _body(request)).get("model")
        if not isinstance(name, str):
            raise refusals.missing("model")
        return {"id": name, "unloaded": await asyncio.wrap_future(house.unload(name))}

    app.add_api_route("/v1/chat/completions", desk.answer, methods=["POST"], response_model=None)
    app.add_exception_handler(AppError, _on_app_error)
    app.add_exception_handler(SQLAlchemyError, _on_database_error)
    app.add_exception_handler(Gone, _on_gone)
    return app


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError as problem:
        raise InvalidRequest(f"The body is not JSON: {problem}.", code="invalid_json") from problem
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return body


async def _watch(request: Request, ticket: Ticket, events: "asyncio.Queue[Event | None]") -> None:
    """Free a request's rows as soon as its client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.gone = True
    events.put_nowait(None)


async def _collect(answer: Answer, event: Piece | Usage) -> tuple[list[Piece], Usage]:
    pieces = []
    while isinstance(event, Piece):
        pieces.append(event)
        event = await answer.next()
    return pieces, event


async def _stream(head: dict[str, Any], answer: Answer, event: Piece | Usage) -> AsyncGenerator[str]:
    wanted = answer.wanted
    told: dict[str, Any] = {"usage": None} if wanted.includes_usage else {}
    head = {**head, "object": "chat.completion.chunk"}
    begin = {"role": "assistant", "content": "", "refusal": None}
    try:
        for index in range(wanted.n):
            yield _chunk({**head, "choices": [_choice(Piece(index, begin))], **told})
        while isinstance(event, Piece):
            yield _chunk({**head, "choices": [_choice(event)], **told})
            event = await answer.next()
        if wanted.includes_usage:
            yield _chunk({**head, "choices": [], "usage": _usage(event)})
        yield "data: [DONE]\n\n"
    except AppError as problem:
        yield _chunk(dict(problem.envelope()))
    except Gone:
        return
    finally:
        answer.let_go()


def _completion(
    head: dict[str, Any], wanted: ChatRequest, pieces: list[Piece], usage: Usage
) -> dict[str, Any]:
    choices = [whole([piece for piece in pieces if piece.index == index]) for index in range(wanted.n)]
    return {**head, "object": "chat.completion", "choices": choices, "usage": _usage(usage)}


def _choice(piece: Piece) -> dict[str, Any]:
    delta = dict(piece.delta)
    if "tool_calls" in delta:
        delta["content"] = None
    logprobs = None if piece.logprobs is None else {"content": piece.logprobs, "refusal": None}
    return {"index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish_reason}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _chunk(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _error(error: AppError) -> JSONResponse:
    headers: dict[str, str] = dict(error.headers) if isinstance(error, RateLimited) else {}
    if isinstance(error, Unavailable) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    return JSONResponse(error.envelope(), status_code=error.status, headers=headers)


async def _on_app_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AppError)
    return _error(error)


async def _on_database_error(_request: Request, error: Exception) -> JSONResponse:
    logger.warning("the database is away: %s", error)
    return _error(Unavailable("The database can't be reached at the moment.", retry_after=5))


async def _on_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)

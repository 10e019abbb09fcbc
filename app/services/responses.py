"""Responses: answered by a model served here, kept unless told otherwise, gone on from by their id.

An answer is made without a transaction; what is kept of it is one row. Called by both faces.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import delete, literal, select
from sqlalchemy.orm import Session

from app.core.engines import Served
from app.core.errors import AppError, InvalidRequest, NotFound
from app.core.tables import Response
from app.services import completions
from app.services.chat_answer import Answer
from app.services.chat_request import ChatRequest
from app.services.response_events import Event, Growth

ENDINGS = ("response.completed", "response.incomplete", "response.failed")


async def answer(served: Served, growth: Growth, chat: ChatRequest) -> dict[str, Any]:
    """Return a whole response. Raises: Unavailable, RateLimited, InvalidRequest."""
    async with aclosing(_grown(served, growth, chat)) as events:
        async for _ in events:
            pass
    return growth.response()


async def events(served: Served, growth: Growth, chat: ChatRequest) -> AsyncGenerator[Event]:
    """Yield a response's events; an engine that fails under way makes a response that failed.

    Raises: Unavailable, RateLimited, InvalidRequest, before the first event only.
    """
    begun = False
    try:
        async with aclosing(_grown(served, growth, chat)) as grown:
            async for event in grown:
                begun = True
                yield event
    except AppError as problem:
        if not begun:
            raise
        yield growth.failing(problem)


async def count_input(served: Served, chat: ChatRequest) -> int:
    """Return how many tokens a conversation is. One token is drawn: every engine tells what it read then."""
    asked = {key: value for key, value in chat.asked.items() if key not in ("response_format", "logprobs")}
    one = ChatRequest(chat.model, asked | {"max_completion_tokens": 1})
    made = await completions.answer(served, one)
    count: int = made["usage"]["prompt_tokens"]
    return count


def conversation_before(
    session: Session, *, project_id: str, previous_id: str | None
) -> list[dict[str, Any]]:
    """Return every item up to and with the response `previous_id`. Raises: InvalidRequest."""
    if previous_id is None:
        return []
    mine = Response.project_id == project_id
    chain = (
        select(Response.id, Response.previous_id, literal(0).label("age"))
        .where(Response.id == previous_id, mine)
        .cte("chain", recursive=True)
    )
    chain = chain.union_all(
        select(Response.id, Response.previous_id, chain.c.age + 1).where(
            Response.id == chain.c.previous_id, mine
        )
    )
    rows = session.scalars(
        select(Response).join(chain, Response.id == chain.c.id).order_by(chain.c.age.desc())
    ).all()
    if not rows or rows[0].previous_id is not None:
        lost = rows[0].previous_id if rows else previous_id
        raise InvalidRequest(
            f"Previous response with id '{lost}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return [item for row in rows for item in (*row.input, *row.answer["output"])]


def store(session: Session, *, project_id: str, growth: Growth) -> Response:
    """Keep a response with its own input."""
    row = Response(
        id=growth.id,
        project_id=project_id,
        previous_id=growth.request.previous_id,
        input=growth.request.input,
        answer=growth.response(),
        created_at=growth.created,
    )
    session.add(row)
    session.flush()
    return row


def get_response(session: Session, *, project_id: str, response_id: str) -> Response:
    """Return a kept response. Raises: NotFound."""
    row = session.get(Response, response_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"Response with id '{response_id}' not found.", param="response_id")
    return row


def cancel_response(session: Session, *, project_id: str, response_id: str) -> None:
    """Refuse: only a response in the background could be cancelled. Raises: NotFound, InvalidRequest."""
    get_response(session, project_id=project_id, response_id=response_id)
    raise InvalidRequest(
        "Only a response in the background can be cancelled, and this one was answered while its client "
        "waited.",
        param="response_id",
        code="invalid_response_state",
    )


def delete_response(session: Session, *, project_id: str, response_id: str) -> None:
    """Forget a response; one that went on from it can't be gone on from any more. Raises: NotFound."""
    session.delete(get_response(session, project_id=project_id, response_id=response_id))
    session.flush()


def forget_old(session: Session, *, before: float) -> int:
    """Forget responses kept before a moment and return how many. Called by the sweep."""
    gone: Sequence[Any] = session.execute(
        delete(Response).where(Response.created_at < before).returning(Response.id)
    ).all()
    return len(gone)


async def _grown(served: Served, growth: Growth, chat: ChatRequest) -> AsyncGenerator[Event]:
    made = Answer(served)
    begun = False
    async with aclosing(completions.pieces(chat, made)) as chunks:
        async for chunk in chunks:
            if not begun:
                begun = True
                for event in growth.opening():
                    yield event
            for event in growth.pieces(chunk):
                yield event
    for event in growth.closing(made.completion()["usage"]):
        yield event

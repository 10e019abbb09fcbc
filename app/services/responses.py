"""Responses: answered by a model served here, kept unless told otherwise, gone on from by their id.

An answer is made without a transaction; what is kept of it is one row. One that is made in the background has
its row from the beginning, with a lease that whoever makes it renews. Called by both faces.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import AsyncGenerator, Sequence, Set
from contextlib import aclosing
from typing import Any

from sqlalchemy import ColumnElement, delete, literal, select, update
from sqlalchemy.orm import Session

from app.core.db import database_now
from app.core.engines import Served
from app.core.errors import AppError, InvalidRequest, NotFound
from app.core.tables import Response
from app.services import completions
from app.services.chat_answer import Answer
from app.services.chat_request import ChatRequest
from app.services.response_events import Event, Growth

ENDINGS = ("response.completed", "response.incomplete", "response.failed")
UNENDED = ("queued", "in_progress")
# Whoever answers in the background and has not been heard of for so long is gone.
LEASE_SECONDS = 30.0
_INTERRUPTED = {
    "code": "server_error",
    "message": "The service was stopped while it made this response. Please ask again.",
}


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
    if any(whole(session, row)["status"] in UNENDED for row in rows):
        raise InvalidRequest(
            f"Previous response with id '{previous_id}' is still under way. Retrieve it until it has ended.",
            param="previous_response_id",
            code="previous_response_not_ended",
        )
    if not rows or rows[0].previous_id is not None:
        lost = rows[0].previous_id if rows else previous_id
        raise InvalidRequest(
            f"Previous response with id '{lost}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    said = [item for row in rows for item in (*row.input, *row.answer["output"])]
    # A call whose arguments broke off was never made.
    return [
        item for item in said if item.get("type") != "function_call" or item.get("status") != "incomplete"
    ]


def store(session: Session, *, project_id: str, growth: Growth) -> None:
    """Keep a response with its own input; one that is still to be made gets its first lease."""
    session.add(
        Response(
            id=growth.id,
            project_id=project_id,
            previous_id=growth.request.previous_id,
            input=growth.request.input,
            answer=growth.response(),
            created_at=growth.created,
            lease_expires_at=database_now() + LEASE_SECONDS if growth.request.in_background else None,
        )
    )
    session.flush()


def renew(session: Session, response_ids: Sequence[str], *, begun: Set[str]) -> set[str]:
    """Renew the leases of responses under way and return those still wanted: nobody cancelled, deleted or
    took them for lost. What has `begun` to be answered is in progress from now on.
    """
    renewed = session.execute(
        update(Response)
        .where(Response.id.in_(response_ids), _is_held())
        .values(lease_expires_at=database_now() + LEASE_SECONDS)
        .returning(Response.id)
    )
    wanted = {row.id for row in renewed}
    for row in session.scalars(select(Response).where(Response.id.in_(wanted & begun))):
        row.answer = {**row.answer, "status": "in_progress"}
    session.flush()
    return wanted


def finish(session: Session, answer: dict[str, Any]) -> None:
    """Write down the end of a response in the background, unless nobody wants it any more."""
    session.execute(
        update(Response)
        .where(Response.id == answer["id"], _is_held())
        .values(answer=answer, lease_expires_at=None)
    )


def abandon(session: Session, response_ids: Sequence[str]) -> None:
    """Let go of responses that this process won't end."""
    session.execute(
        update(Response)
        .where(Response.id.in_(response_ids), Response.lease_expires_at.is_not(None))
        .values(lease_expires_at=0.0)
    )


def whole(session: Session, row: Response) -> dict[str, Any]:
    """Return a kept response as it stands: one whose maker is gone has failed."""
    if row.lease_expires_at is None or row.lease_expires_at > session.scalars(select(database_now())).one():
        return row.answer
    return _ended(row.answer, "failed") | {"error": _INTERRUPTED}


def get_response(session: Session, *, project_id: str, response_id: str, to_change: bool = False) -> Response:
    """Return a kept response, locked against whoever makes it when it is `to_change`. Raises: NotFound."""
    row = session.get(Response, response_id, with_for_update=to_change)
    if row is None or row.project_id != project_id:
        raise NotFound(f"Response with id '{response_id}' not found.", param="response_id")
    return row


def cancel_response(session: Session, *, project_id: str, response_id: str) -> dict[str, Any]:
    """End a response in the background and return it; one that has ended stays as it is.

    Raises: NotFound; InvalidRequest for one that was answered while its client waited.
    """
    row = get_response(session, project_id=project_id, response_id=response_id, to_change=True)
    if not row.answer["background"]:
        raise InvalidRequest(
            "Only a response in the background can be cancelled, and this one was answered while its client "
            "waited.",
            param="response_id",
            code="invalid_response_state",
        )
    answer = whole(session, row)
    if row.lease_expires_at is not None:
        if answer["status"] != "failed":
            answer = _ended(answer, "cancelled")
        row.answer, row.lease_expires_at = answer, None
        session.flush()
    return answer


def delete_response(session: Session, *, project_id: str, response_id: str) -> None:
    """Forget a response; one that went on from it can't be gone on from any more. Raises: NotFound."""
    session.delete(get_response(session, project_id=project_id, response_id=response_id, to_change=True))
    session.flush()


def forget_old(session: Session, *, before: float) -> int:
    """Forget responses kept before a moment and return how many. Called by the sweep."""
    gone: Sequence[Any] = session.execute(
        delete(Response).where(Response.created_at < before).returning(Response.id)
    ).all()
    return len(gone)


def _is_held() -> ColumnElement[bool]:
    return Response.lease_expires_at > database_now()


def _ended(answer: dict[str, Any], status: str) -> dict[str, Any]:
    output = [
        item | ({"status": "incomplete"} if item["status"] == "in_progress" else {})
        for item in answer["output"]
    ]
    return answer | {"status": status, "output": output}


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

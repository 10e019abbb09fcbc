"""Chat completions: answered by a model served here, and stored when their request asks for it.

An answer is made without a transaction; what is stored of it is one row. Called by both faces.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.engines import Served
from app.core.errors import InvalidRequest, NotFound
from app.core.page import Page, labelled, read_page
from app.core.tables import Completion
from app.services import inference
from app.services.chat_answer import Answer, Garbled
from app.services.chat_messages import text_of
from app.services.chat_request import ChatRequest


async def answer(served: Served, request: ChatRequest) -> dict[str, Any]:
    """Return a whole completion. Raises: Unavailable, RateLimited, InvalidRequest."""
    said = await inference.ask(served, request.for_engine(served.name))
    try:
        return Answer(served).whole(said)
    except Garbled as problem:
        raise inference.garbled(served, str(problem)) from problem


async def pieces(request: ChatRequest, made: Answer) -> AsyncGenerator[dict[str, Any]]:
    """Yield a completion's chunks, the one with its usage included when it is asked for.

    `made` holds the completion so far. Raises: Unavailable, RateLimited, InvalidRequest, also in the middle.
    """
    nothing: dict[str, Any] = {"usage": None} if request.includes_usage else {}
    async with aclosing(inference.stream(made.served, request.for_engine(made.served.name))) as stream:
        async for said in stream:
            try:
                for chunk in made.pieces(said):
                    yield chunk | nothing
            except Garbled as problem:
                raise inference.garbled(made.served, str(problem)) from problem
    if request.includes_usage:
        yield made.usage_chunk()


def store(
    session: Session, *, project_id: str, request: ChatRequest, answer: Mapping[str, Any], request_id: str
) -> Completion:
    """Keep a completion with what was asked."""
    row = Completion(
        id=answer["id"],
        project_id=project_id,
        model=answer["model"],
        labels=request.asked.get("metadata"),
        messages=request.messages,
        asked={"request_id": request_id, **request.echo()},
        answer=dict(answer),
        created_at=clock.now(),
    )
    session.add(row)
    session.flush()
    return row


def get_completion(session: Session, *, project_id: str, completion_id: str) -> Completion:
    """Return a stored completion. Raises: NotFound, for one that was not stored as well."""
    row = session.get(Completion, completion_id)
    if row is None or row.project_id != project_id:
        raise NotFound(
            f"No stored chat completion '{completion_id}'. Only those made with 'store': true are kept.",
            param="completion_id",
        )
    return row


def list_completions(
    session: Session,
    *,
    project_id: str,
    limit: int,
    after: str | None = None,
    model: str | None = None,
    labels: Mapping[str, str] | None = None,
    without_labels: bool = False,
    descending: bool = False,
) -> Page[Completion]:
    """Return a page of stored completions, oldest first unless told otherwise."""
    everything = select(Completion).where(Completion.project_id == project_id)
    query = everything if model is None else everything.where(Completion.model == model)
    return read_page(
        session,
        labelled(session, query, Completion.labels, labels=labels or {}, without=without_labels),
        keys=[Completion.created_at, Completion.id],
        id_column=Completion.id,
        limit=limit,
        after=after,
        descending=descending,
        among=everything,
    )


def update_completion(
    session: Session, *, project_id: str, completion_id: str, labels: dict[str, str] | None
) -> Completion:
    """Give a stored completion other metadata. Raises: NotFound."""
    row = get_completion(session, project_id=project_id, completion_id=completion_id)
    row.labels = dict(labels) if labels else None
    session.flush()
    return row


def delete_completion(session: Session, *, project_id: str, completion_id: str) -> None:
    """Forget a stored completion. Raises: NotFound."""
    session.delete(get_completion(session, project_id=project_id, completion_id=completion_id))
    session.flush()


def forget_old(session: Session, *, before: float) -> int:
    """Forget completions stored before a moment and return how many. Called by the sweep."""
    gone = session.execute(delete(Completion).where(Completion.created_at < before).returning(Completion.id))
    return len(gone.all())


def messages_of(row: Completion) -> list[dict[str, Any]]:
    """Return the messages a stored completion was asked with, each under an id."""
    return [
        {
            "id": f"{row.id}-{place}",
            "role": message["role"],
            "content": None if message["content"] is None else text_of(message["content"]),
            "name": message.get("name"),
            "content_parts": message["content"] if isinstance(message["content"], list) else None,
            **{key: message[key] for key in ("tool_calls", "tool_call_id", "refusal") if key in message},
        }
        for place, message in enumerate(row.messages)
    ]


def page_of(
    rows: Sequence[dict[str, Any]], *, limit: int, after: str | None, descending: bool
) -> Page[dict[str, Any]]:
    """Return a page of rows that stand inside one object. Raises: InvalidRequest for an unknown `after`."""
    ordered = list(reversed(rows)) if descending else list(rows)
    start = 0
    if after is not None:
        places = [place for place, row in enumerate(ordered) if row["id"] == after]
        if not places:
            raise InvalidRequest(f"No object with id '{after}' to list after.", param="after")
        start = places[0] + 1
    return Page(ordered[start : start + limit], start + limit < len(ordered))

"""Routes of chat completions: create, and list, retrieve, update, delete what was stored.

No session is open while a model answers.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.api import streams
from app.api.deps import ByCaller, InContext, InSession, JsonObject, Limit, Order
from app.api.guard import Caller
from app.api.labels import ByLabels
from app.api.schemas.completions import DeletedCompletion, labels_in, stored_completion
from app.api.schemas.lists import ListedWithEnds, listed_with_ends, rows_with_ends
from app.core.context import Context
from app.services import completions, inference
from app.services.chat_answer import Answer
from app.services.chat_request import ChatRequest, parse_chat_request

router = APIRouter(prefix="/chat/completions", tags=["chat"])


@router.post("", response_model=None)
async def create_completion(
    request: Request, context: InContext, caller: ByCaller, document: JsonObject
) -> Response:
    """Answer a conversation, at once or piece by piece."""
    wanted = await to_thread.run_sync(parse_chat_request, document)
    served = await to_thread.run_sync(
        lambda: inference.served(context, project_id=caller.project_id, name=wanted.model)
    )
    if wanted.stream:
        return await streams.events(request, _pieces(request, context, caller, wanted, Answer(served)))
    made = await streams.while_present(request, completions.answer(served, wanted))
    await _keep(request, context, caller, wanted, made)
    return JSONResponse(made)


@router.get("")
def list_completions(
    session: InSession,
    context: InContext,
    caller: ByCaller,
    wanted: ByLabels,
    model: str | None = None,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "asc",
) -> ListedWithEnds[dict[str, Any]]:
    """List the project's stored completions, oldest first."""
    page = completions.list_completions(
        session,
        project_id=caller.project_id,
        limit=limit,
        after=after,
        model=None if model is None else context.settings.model_aliases.get(model, model),
        labels=wanted.labels,
        without_labels=wanted.without,
        descending=order == "desc",
    )
    return listed_with_ends(page, stored_completion)


@router.get("/{completion_id}")
def retrieve_completion(session: InSession, caller: ByCaller, completion_id: str) -> dict[str, Any]:
    """Return a stored completion."""
    return stored_completion(
        completions.get_completion(session, project_id=caller.project_id, completion_id=completion_id)
    )


@router.post("/{completion_id}")
def update_completion(
    session: InSession, caller: ByCaller, completion_id: str, document: JsonObject
) -> dict[str, Any]:
    """Give a stored completion other metadata."""
    labels = labels_in(document)
    return stored_completion(
        completions.update_completion(
            session, project_id=caller.project_id, completion_id=completion_id, labels=labels
        )
    )


@router.delete("/{completion_id}")
def delete_completion(session: InSession, caller: ByCaller, completion_id: str) -> DeletedCompletion:
    """Forget a stored completion."""
    completions.delete_completion(session, project_id=caller.project_id, completion_id=completion_id)
    return DeletedCompletion(id=completion_id)


@router.get("/{completion_id}/messages")
def list_messages(
    session: InSession,
    caller: ByCaller,
    completion_id: str,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "asc",
) -> ListedWithEnds[dict[str, Any]]:
    """List the messages a stored completion was asked with."""
    row = completions.get_completion(session, project_id=caller.project_id, completion_id=completion_id)
    rows = completions.messages_of(row)
    return rows_with_ends(completions.page_of(rows, limit=limit, after=after, descending=order == "desc"))


async def _pieces(
    request: Request, context: Context, caller: Caller, wanted: ChatRequest, made: Answer
) -> AsyncGenerator[dict[str, Any]]:
    async with aclosing(completions.pieces(wanted, made)) as pieces:
        async for piece in pieces:
            yield piece
    await _keep(request, context, caller, wanted, made.completion())


async def _keep(
    request: Request, context: Context, caller: Caller, wanted: ChatRequest, made: dict[str, Any]
) -> None:
    if wanted.is_stored:
        await to_thread.run_sync(_store, context, caller.project_id, wanted, made, request.state.request_id)


def _store(
    context: Context, project_id: str, wanted: ChatRequest, made: dict[str, Any], request_id: str
) -> None:
    with context.db.transaction() as session:
        completions.store(session, project_id=project_id, request=wanted, answer=made, request_id=request_id)

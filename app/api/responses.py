"""Routes of responses: create, retrieve, delete, cancel, their input items, and how many tokens an input is.

No session is open while a model answers. `background.py` makes those that their client comes back for.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse
from starlette.responses import Response as Answer

from app.api import streams
from app.api.background import Background
from app.api.deps import ByCaller, InContext, InSession, JsonObject, Limit, Order
from app.api.guard import Caller
from app.api.schemas.lists import ListedWithEnds, rows_with_ends
from app.api.schemas.responses import DeletedResponse, InputTokens
from app.core.context import Context
from app.core.engines import Served
from app.core.refusals import unsupported
from app.services import completions, inference, responses
from app.services.chat_request import ChatRequest
from app.services.response_events import Event, Growth
from app.services.response_request import ResponseRequest, parse_count_request, parse_response_request

router = APIRouter(prefix="/responses", tags=["responses"])


@router.post("", response_model=None)
async def create_response(
    request: Request, context: InContext, caller: ByCaller, document: JsonObject
) -> Answer:
    """Answer an input, at once or event by event; kept unless `store` is false."""
    wanted = await to_thread.run_sync(parse_response_request, document)
    served, chat = await to_thread.run_sync(_prepared, context, caller, wanted)
    growth = Growth(wanted, served.model)
    if wanted.in_background:
        background: Background = request.app.state.background
        return JSONResponse(await background.begin(caller.project_id, served, growth, chat))
    if wanted.stream:
        return await streams.events(request, _events(context, caller, served, growth, chat), named=True)
    made = await streams.while_present(request, responses.answer(served, growth, chat))
    await _keep(context, caller, growth)
    return JSONResponse(made)


@router.post("/input_tokens")
async def count_input_tokens(
    request: Request, context: InContext, caller: ByCaller, document: JsonObject
) -> InputTokens:
    """Return how many tokens an input is to its model."""
    wanted = await to_thread.run_sync(parse_count_request, document)
    served, chat = await to_thread.run_sync(_prepared, context, caller, wanted)
    count = await streams.while_present(request, responses.count_input(served, chat))
    return InputTokens(input_tokens=count)


@router.get("/{response_id}")
def retrieve_response(
    session: InSession, caller: ByCaller, response_id: str, stream: bool = False
) -> dict[str, Any]:
    """Return a kept response."""
    if stream:
        raise unsupported("a response that is kept is whole; leave 'stream' out.", "stream")
    row = responses.get_response(session, project_id=caller.project_id, response_id=response_id)
    return responses.whole(session, row)


@router.delete("/{response_id}")
def delete_response(session: InSession, caller: ByCaller, response_id: str) -> DeletedResponse:
    """Forget a response."""
    responses.delete_response(session, project_id=caller.project_id, response_id=response_id)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel")
def cancel_response(session: InSession, caller: ByCaller, response_id: str) -> dict[str, Any]:
    """End a response in the background."""
    return responses.cancel_response(session, project_id=caller.project_id, response_id=response_id)


@router.get("/{response_id}/input_items")
def list_input_items(
    session: InSession,
    caller: ByCaller,
    response_id: str,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "desc",
) -> ListedWithEnds[dict[str, Any]]:
    """List the items a response was asked with, last first."""
    row = responses.get_response(session, project_id=caller.project_id, response_id=response_id)
    return rows_with_ends(
        completions.page_of(row.input, limit=limit, after=after, descending=order == "desc")
    )


def _prepared(context: Context, caller: Caller, wanted: ResponseRequest) -> tuple[Served, ChatRequest]:
    with context.db.reading() as session:
        before = responses.conversation_before(
            session, project_id=caller.project_id, previous_id=wanted.previous_id
        )
    served = inference.served(context, project_id=caller.project_id, name=wanted.model)
    return served, wanted.chat(before)


async def _events(
    context: Context, caller: Caller, served: Served, growth: Growth, chat: ChatRequest
) -> AsyncGenerator[Event]:
    async with aclosing(responses.events(served, growth, chat)) as events:
        async for event in events:
            if event["type"] in responses.ENDINGS:
                # First, so that whoever reads the end may ask for the whole.
                await _keep(context, caller, growth)
            yield event


async def _keep(context: Context, caller: Caller, growth: Growth) -> None:
    if growth.request.is_stored:
        await to_thread.run_sync(_store, context, caller.project_id, growth)


def _store(context: Context, project_id: str, growth: Growth) -> None:
    with context.db.transaction() as session:
        responses.store(session, project_id=project_id, growth=growth)

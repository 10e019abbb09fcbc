"""What routes ask for: the process's context, the caller, a session, a JSON object, a page's bounds.

A session ends with the route's function, before the answer leaves: what a client was told is committed.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from sqlalchemy.orm import Session

from app.api import strict_json
from app.api.guard import Caller
from app.core import refusals
from app.core.context import Context
from app.core.errors import InvalidRequest
from app.services.acceptances import Attempt


def get_context(request: Request) -> Context:
    """Return what this process carries around."""
    context: Context = request.app.state.context
    return context


def get_caller(request: Request) -> Caller:
    """Return who the guard let in."""
    caller: Caller = request.state.caller
    return caller


def get_session(request: Request) -> Iterator[Session]:
    """Yield the request's session; one that only reads takes no write lock."""
    database = get_context(request).db
    opened = database.reading() if request.method in ("GET", "HEAD") else database.transaction()
    with opened as session:
        yield session


def get_attempt(request: Request) -> Attempt:
    """Return what a creating request says about being sent again. Raises: InvalidRequest."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise refusals.invalid("it must be 1 to 255 printable ASCII characters long", "Idempotency-Key")
    count = request.headers.get("x-stainless-retry-count", "")
    return Attempt(get_caller(request).key_id, key, count.isdecimal() and count.strip("0") != "")


async def json_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body. Raises: InvalidRequest for anything else."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest(
            f"Unsupported content type: {content_type[:100]!r}. This route takes 'application/json'.",
            code="unsupported_content_type",
        )
    document = strict_json.loads(await request.body())
    if not isinstance(document, dict):
        raise InvalidRequest("The JSON body of your request is not an object.", code="invalid_type")
    return document


InContext = Annotated[Context, Depends(get_context)]
ByCaller = Annotated[Caller, Depends(get_caller)]
ByAttempt = Annotated[Attempt, Depends(get_attempt)]
# The default scope would commit after the client has its answer.
InSession = Annotated[Session, Depends(get_session, scope="function")]
JsonObject = Annotated[dict[str, Any], Depends(json_object)]

Limit = Annotated[int, Query(ge=1, le=100)]
FileLimit = Annotated[int, Query(ge=1, le=10_000)]
Order = Annotated[Literal["asc", "desc"], Query()]
LongOrder = Annotated[Literal["ascending", "descending"], Query()]
Natural = Annotated[int | None, Query(ge=0, le=2**31 - 1)]

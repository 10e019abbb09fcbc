"""Receives uploaded bytes: the form is parsed as it arrives and its file goes straight into storage.

Constant memory, no second copy on disk, and no order or length required of the form: SDKs send the file
before its purpose, and in chunks without a Content-Length. Called by the routes of files and uploads.

Source: RFC 7578 (multipart/form-data).
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import Depends, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from app.api.deps import ByCaller, InContext
from app.core import refusals
from app.core.context import Context
from app.core.errors import InvalidRequest, TooLarge
from app.services import files, uploads

_FIELD_BYTES, _PARTS = 64 * 1024, 16
# Slow uploads wait in threads of their own, so that they can't take those of the other routes.
_UPLOADS_AT_ONCE = 16

Event = tuple[str, bytes]


@dataclass(slots=True)
class Upload:
    """A form that has come in whole: its file is in storage, its other fields are here."""

    stored: files.Stored | None = None
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def expires_after(self) -> dict[str, str | int]:
        """The fields `expires_after[…]`, under the names within the brackets."""
        start = "expires_after["
        return {
            n[len(start) : -1]: v for n, v in self.fields.items() if n.startswith(start) and n.endswith("]")
        }


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a form holds: the field whose bytes are stored, how, and which fields may stand beside it."""

    field: str
    store: Callable[[Iterator[bytes]], files.Stored]
    allows: Callable[[str], bool]
    needs: tuple[str, ...] = ()


async def receive_upload(request: Request, context: InContext, caller: ByCaller) -> AsyncIterator[Upload]:
    """Yield the form of a request; the stored file is removed again if what follows fails."""
    store = partial(_store_file, context, caller.project_id)
    plan = _Plan("file", store, _is_file_field, ("purpose",))
    async with _received(request, context, plan) as upload:
        yield upload


async def receive_part(
    request: Request, context: InContext, caller: ByCaller, upload_id: str
) -> AsyncIterator[Upload]:
    """Yield a part of an upload, once the upload is known to take one; as above."""
    await to_thread.run_sync(_check_pending, context, caller.project_id, upload_id)
    store = partial(_store_part, context, caller.project_id, upload_id)
    async with _received(request, context, _Plan("data", store, lambda _name: False)) as upload:
        yield upload


# Entered before the session, left after it: a commit that fails removes the file too.
Received = Annotated[Upload, Depends(receive_upload, scope="function")]
ReceivedPart = Annotated[Upload, Depends(receive_part, scope="function")]


@asynccontextmanager
async def _received(request: Request, context: Context, plan: _Plan) -> AsyncIterator[Upload]:
    limiter: CapacityLimiter = request.app.state.uploads
    boundary = _boundary(request.headers.get("content-type", ""))
    work = partial(_receive, request.receive, boundary, context, plan)
    upload = await to_thread.run_sync(work, limiter=limiter)
    assert upload.stored is not None
    with files.kept_if_named(context.storage, upload.stored):
        yield upload


def _store_file(context: Context, project_id: str, chunks: Iterator[bytes]) -> files.Stored:
    most = context.settings.max_file_bytes
    return files.store_upload(context.storage, project_id=project_id, chunks=chunks, max_bytes=most)


def _store_part(context: Context, project_id: str, upload_id: str, chunks: Iterator[bytes]) -> files.Stored:
    most = context.settings.max_part_bytes
    return uploads.store_part(
        context.storage, project_id=project_id, upload_id=upload_id, chunks=chunks, max_bytes=most
    )


def _check_pending(context: Context, project_id: str, upload_id: str) -> None:
    with context.db.reading() as session:
        uploads.pending_upload(session, project_id=project_id, upload_id=upload_id)


def _is_file_field(name: str) -> bool:
    return name == "purpose" or (name.startswith("expires_after[") and name.endswith("]"))


def upload_slots() -> CapacityLimiter:
    """Return the limiter an application keeps as `state.uploads`."""
    return CapacityLimiter(_UPLOADS_AT_ONCE)


def _receive(receive: Receive, boundary: bytes, context: Context, plan: _Plan) -> Upload:
    upload, body = Upload(), _body(receive)
    try:
        _read_parts(_events(body, boundary), upload, plan)
        _check_whole(upload, plan)
    except BaseException as problem:
        if upload.stored is not None:
            files.discard(context.storage, upload.stored)
        if isinstance(problem, TooLarge):
            # Little is left, as the guard's limit is close: taken off the wire so that the answer arrives.
            deque(body, maxlen=0)
        raise
    return upload


def _read_parts(events: Iterator[Event], upload: Upload, plan: _Plan) -> None:
    # A part's data is taken off the same iterator below, so that what is counted here is parts.
    for parts, (kind, value) in enumerate(events, 1):
        if kind != "begin":
            raise _malformed("data outside a part")
        if parts > _PARTS:
            raise _malformed(f"more than {_PARTS} parts")
        name, filename = _disposition(value)
        if name == plan.field:
            if filename is None:
                raise InvalidRequest(
                    f"'{name}' must be a file part, with a file name.", param=name, code="invalid_type"
                )
            if upload.stored is not None:
                raise _malformed(f"two parts named '{name}'")
            upload.filename = filename
            upload.stored = plan.store(_data(events))
        else:
            upload.fields[name] = _text(name, _data(events))


def _check_whole(upload: Upload, plan: _Plan) -> None:
    for name in upload.fields:
        if not plan.allows(name):
            raise refusals.unknown(name[:80])
    if upload.stored is None:
        raise refusals.missing(plan.field)
    for name in plan.needs:
        if name not in upload.fields:
            raise refusals.missing(name)


def _body(receive: Receive) -> Iterator[bytes]:
    """Yield the body's chunks, in a worker thread, as the event loop receives them."""

    async def next_message() -> Message:
        return await receive()

    more = True
    while more:
        message = from_thread.run(next_message)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _events(chunks: Iterator[bytes], boundary: bytes) -> Iterator[Event]:
    """Yield ("begin", content disposition), then ("data", bytes) …, then ("end", b"") for each part."""
    queue: deque[Event] = deque()
    parser, is_over = _parser(boundary, queue)
    try:
        for chunk in chunks:
            parser.write(chunk)
            while queue:
                yield queue.popleft()
    except FormParserError as problem:
        raise _malformed(str(problem)[:200]) from problem
    if not is_over():
        raise _malformed("it ends before its last boundary")


def _parser(boundary: bytes, queue: deque[Event]) -> tuple[MultipartParser, Callable[[], bool]]:
    name, value, disposition = bytearray(), bytearray(), bytearray()
    over = False

    def on_header_end() -> None:
        if bytes(name).lower() == b"content-disposition":
            disposition[:] = value
        name.clear()
        value.clear()

    def on_headers_finished() -> None:
        queue.append(("begin", bytes(disposition)))
        disposition.clear()

    def on_end() -> None:
        nonlocal over
        over = True

    parser = MultipartParser(
        boundary,
        {
            "on_header_field": lambda data, start, end: name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": on_header_end,
            "on_headers_finished": on_headers_finished,
            "on_part_data": lambda data, start, end: queue.append(("data", data[start:end])),
            "on_part_end": lambda: queue.append(("end", b"")),
            "on_end": on_end,
        },
    )
    return parser, lambda: over


def _data(events: Iterator[Event]) -> Iterator[bytes]:
    for kind, value in events:
        if kind == "end":
            return
        yield value


def _text(name: str, chunks: Iterator[bytes]) -> str:
    value = bytearray()
    for chunk in chunks:
        value += chunk
        if len(value) > _FIELD_BYTES:
            raise _malformed(f"the field '{name[:80]}' is too long")
    return value.decode("utf-8", "replace")


def _disposition(header: bytes) -> tuple[str, str | None]:
    _, options = parse_options_header(header)
    if b"name" not in options:
        raise _malformed("a part without a name")
    filename = options.get(b"filename")
    return options[b"name"].decode("utf-8", "replace"), (
        None if filename is None else filename.decode("utf-8", "replace")
    )


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise InvalidRequest(
            f"Unsupported content type: {content_type[:100]!r}. This route takes 'multipart/form-data' "
            "with a boundary.",
            code="unsupported_content_type",
        )
    return boundary


def _malformed(why: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the form of your request: {why}.", code="invalid_form")

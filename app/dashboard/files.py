"""The files' pages: list, upload, delete, and one file with its first rows.

What lines must hold is judged by services.datasets when a job starts; the preview uses the same reader,
so that a wrong line shows here before any compute is spent.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from app.core.context import Context
from app.core.errors import InvalidRequest, TooLarge
from app.core.tables import File
from app.dashboard import format, render
from app.dashboard.contexts import Fact, FilePage, FileRow, FilesPage, ItemView, Turn
from app.dashboard.visitor import Form, Parts, Reading, SignedIn, Visitor, text
from app.services import files
from app.services.dataset_rows import MAX_LINE_BYTES, BadLine, read_row

router = APIRouter()
PAGE = 50
PREVIEW_ROWS = 10
_CHUNK = 1024 * 1024


@router.get("/storage")
def go_to_files(_visitor: SignedIn) -> Response:
    """Open the files, the only storage page there is."""
    return RedirectResponse("/storage/files", status_code=303)


@router.get("/storage/files")
def show_files(visitor: SignedIn, session: Reading, after: str | None = None) -> Response:
    """Show the project's files."""
    return _list_page(session, visitor, after=after)


@router.post("/storage/files")
def upload_file(visitor: SignedIn, form: Form, context: Parts) -> Response:
    """Store an upload and show it."""
    try:
        file = take_upload(context, visitor, form, "file", purpose=text(form, "purpose") or "fine-tune")
        if file is None:
            raise InvalidRequest("Choose a file first.", param="file")
    except (InvalidRequest, TooLarge) as refusal:
        with context.db.reading() as session:
            return _list_page(session, visitor, error=refusal.message)
    return RedirectResponse(f"/storage/files/{file.id}", status_code=303)


@router.get("/storage/files/{file_id}")
def show_file(file_id: str, visitor: SignedIn, session: Reading, context: Parts) -> Response:
    """Show one file with its first rows."""
    file = files.get_file(session, project_id=visitor.project_id, file_id=file_id)
    items, note = _preview(context, file)
    page = FilePage(
        frame=visitor.frame(session, title=file.filename, section="files"),
        file=_row(file),
        facts=(
            Fact("File ID", file.id, mono=True, copies=True),
            Fact("Purpose", file.purpose),
            Fact("Size", format.size(file.bytes)),
            Fact("Created", format.absolute(file.created_at), moment=file.created_at),
            Fact("SHA-256", file.sha256, mono=True, copies=True),
        ),
        items=items,
        preview_note=note,
        can_tune=file.purpose == "fine-tune",
    )
    return render.page("files/file.html", page)


@router.get("/storage/files/{file_id}/content")
def download_file(file_id: str, visitor: SignedIn, session: Reading, context: Parts) -> Response:
    """Send a file's bytes, always as a download."""
    file = files.get_file(session, project_id=visitor.project_id, file_id=file_id)
    quoted = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in file.filename)
    return StreamingResponse(
        context.storage.chunks(files.file_uri(file)),
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{quoted}"',
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.post("/storage/files/{file_id}/delete")
def delete_file(file_id: str, visitor: SignedIn, _form: Form, context: Parts) -> Response:
    """Delete a file; its bytes go after the commit."""
    with context.db.transaction() as session:
        files.delete_file(session, storage=context.storage, project_id=visitor.project_id, file_id=file_id)
    return RedirectResponse("/storage/files", status_code=303)


def take_upload(context: Context, visitor: Visitor, form: FormData, key: str, *, purpose: str) -> File | None:
    """Store the file of a form's field and return its row, or None when the field is empty.

    Raises: InvalidRequest, TooLarge.
    """
    upload = form.get(key)
    if not isinstance(upload, UploadFile) or not upload.filename:
        return None
    source = upload.file

    def chunks() -> Iterator[bytes]:
        while chunk := source.read(_CHUNK):
            yield chunk

    stored = files.store_upload(
        context.storage,
        project_id=visitor.project_id,
        chunks=chunks(),
        max_bytes=context.settings.max_file_bytes,
    )
    with files.kept_if_named(context.storage, stored), context.db.transaction() as session:
        name = upload.filename.encode("utf-8", "ignore").decode()
        return files.create_file(session, stored=stored, filename=name, purpose=purpose)


def _list_page(
    session: Session, visitor: Visitor, *, after: str | None = None, error: str | None = None
) -> Response:
    listed = files.list_files(session, project_id=visitor.project_id, limit=PAGE, after=after)
    page = FilesPage(
        frame=visitor.frame(session, title="Files", section="files"),
        rows=tuple(map(_row, listed.rows)),
        next_href=f"/storage/files?after={listed.rows[-1].id}" if listed.has_more else None,
        error=error,
    )
    return render.page("files/files.html", page, status=422 if error else 200)


def _row(file: File) -> FileRow:
    return FileRow(file.id, file.filename, file.purpose, file.bytes, file.created_at)


def _preview(context: Context, file: File) -> tuple[tuple[ItemView, ...], str]:
    try:
        with context.storage.open(files.file_uri(file)) as source:
            lines = [source.readline(MAX_LINE_BYTES + 1) for _ in range(PREVIEW_ROWS + 1)]
    except FileNotFoundError:
        return (), "The bytes of this file are missing from storage."
    told = [line for line in lines if line]
    if not file.filename.lower().endswith(".jsonl"):
        shown = b"".join(told)[:4000].decode("utf-8", "replace")
        return (ItemView(1, (), shown, None),), "The beginning of the file."
    items = tuple(_item(number, line) for number, line in islice(enumerate(told, 1), PREVIEW_ROWS))
    more = len(told) > PREVIEW_ROWS
    return items, f"The first {PREVIEW_ROWS} rows." if more else format.plural(
        len(items), "row"
    ) + ", all of them."


def _item(number: int, line: bytes) -> ItemView:
    try:
        row = read_row(line.rstrip(b"\r\n"), number - 1)
    except BadLine as problem:
        return ItemView(number, (), line[:2000].decode("utf-8", "replace"), str(problem))
    turns = tuple(Turn(str(message["role"]), str(message["content"])) for message in row.messages)
    return ItemView(number, turns, pretty(row.item), None)


def pretty(item: dict[str, Any]) -> str:
    """Return an item as indented JSON, empty when it has no field."""
    return json.dumps(item, indent=2, ensure_ascii=False) if item else ""

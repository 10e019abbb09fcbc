"""Files: uploads and made files. The row is here, the bytes lie in storage under `files/<project>/<id>`.

Bytes are stored before the row's transaction begins and removed after the deleting one has committed,
so no lock waits for a disk. Reading rows out of a JSONL file is `datasets.py`. Called by both faces
and by the trainer (result files).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, event, or_, select
from sqlalchemy.orm import Session

from app.core import clock, ids, refusals
from app.core.errors import InvalidRequest, NotFound, TooLarge
from app.core.page import Page, read_page
from app.core.storage import Storage
from app.core.tables import File

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
LINES_ONLY = ("fine-tune", "batch")
EXPIRES_MIN, EXPIRES_MAX = 3_600, 2_592_000
_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes in storage that no row names yet, under the id their row will have."""

    id: str
    project_id: str
    uri: str
    bytes: int
    sha256: str


def store_upload(
    storage: Storage, *, project_id: str, chunks: Iterable[bytes], max_bytes: int | None = None
) -> Stored:
    """Write bytes under a new id, in constant memory; a failure leaves nothing behind.

    Raises: TooLarge past `max_bytes`, StorageFull.
    """
    file_id = ids.new_id("file")
    uri = _uri(project_id, file_id)
    size, digest = storage.write(uri, limited(chunks, max_bytes))
    return Stored(file_id, project_id, uri, size, digest)


@contextmanager
def kept_if_named(storage: Storage, stored: Stored) -> Iterator[Stored]:
    """Remove the stored bytes again when the block that should give them a row fails."""
    try:
        yield stored
    except BaseException:
        discard(storage, stored)
        raise


def discard(storage: Storage, stored: Stored) -> None:
    """Remove bytes that got no row."""
    storage.remove(stored.uri)


def create_file(
    session: Session,
    *,
    stored: Stored,
    filename: str,
    purpose: str,
    expires_after: Mapping[str, Any] | None = None,
) -> File:
    """Insert the row of an upload. What its lines hold is judged when a job starts, as OpenAI does.

    Raises: InvalidRequest with the form field's name as param.
    """
    name = checked_label(filename, purpose)
    if stored.bytes == 0:
        raise InvalidRequest("File is empty.", param="file", code="empty_file")
    return insert_file(session, stored, name, purpose, lifetime(expires_after, purpose=purpose))


def name_result(session: Session, *, stored: Stored, filename: str, purpose: str) -> File:
    """Insert the row of a file the service itself made, whose purpose no upload may have."""
    return insert_file(session, stored, clean_name(filename), purpose, None)


def get_file(session: Session, *, project_id: str, file_id: str) -> File:
    """Return a file of the project. Raises: NotFound, for one that has expired as well."""
    query = select(File).where(File.project_id == project_id, File.id == file_id, _is_alive())
    file = session.scalars(query).one_or_none()
    if file is None:
        raise NotFound(f"No such File object: {file_id}", param="id")
    return file


def is_there(session: Session, *, project_id: str, file_id: str) -> bool:
    """Say whether the project has this file."""
    query = select(File.id).where(File.project_id == project_id, File.id == file_id, _is_alive())
    return session.scalar(query) is not None


def list_files(
    session: Session,
    *,
    project_id: str,
    purpose: str | None = None,
    limit: int = 10_000,
    after: str | None = None,
    order: str = "desc",
) -> Page[File]:
    """Return the project's files, newest first unless `order` is `asc`."""
    query = select(File).where(File.project_id == project_id, _is_alive())
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    keys = (File.created_at, File.id)
    return read_page(
        session, query, keys=keys, id_column=File.id, limit=limit, after=after, descending=order != "asc"
    )


def delete_file(session: Session, *, storage: Storage, project_id: str, file_id: str) -> File:
    """Delete a file; its bytes go once the transaction has committed. Raises: NotFound."""
    file = get_file(session, project_id=project_id, file_id=file_id)
    session.delete(file)
    session.flush()
    remove_after_commit(session, storage, [file_uri(file)])
    return file


def delete_expired(session: Session, *, storage: Storage, limit: int = 100) -> int:
    """Delete up to `limit` files whose time is over and return how many. Called by the sweep."""
    files = session.scalars(select(File).where(File.expires_at <= clock.now()).limit(limit)).all()
    session.execute(delete(File).where(File.id.in_([file.id for file in files])))
    remove_after_commit(session, storage, [file_uri(file) for file in files])
    return len(files)


def file_uri(file: File) -> str:
    """Return where the file's bytes lie in storage."""
    return _uri(file.project_id, file.id)


def checked_label(filename: str, purpose: str, *, param: str = "file") -> str:
    """Return the name a file will have. Raises: InvalidRequest for a purpose or a format it can't have."""
    name = clean_name(filename)
    if purpose not in PURPOSES:
        raise refusals.wrong_value(purpose, PURPOSES, "purpose")
    if purpose in LINES_ONLY and not name.lower().endswith(".jsonl"):
        raise InvalidRequest(
            f"Invalid file format for {purpose}: {name!r} must be a .jsonl file, one JSON object a line.",
            param=param,
            code="invalid_file_format",
        )
    return name


def clean_name(filename: str) -> str:
    """Return a user's file name as a label: no folders, no control characters, at most 255 long."""
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(c for c in name if c.isprintable()).strip() or "upload"
    if len(name) <= _NAME_LENGTH:
        return name
    stem, dot, ending = name.rpartition(".")
    if not dot or len(ending) > 16:
        return name[:_NAME_LENGTH]
    return f"{stem[: _NAME_LENGTH - len(ending) - 1]}.{ending}"


def _uri(project_id: str, file_id: str) -> str:
    return f"files/{project_id}/{file_id}"


def limited(
    chunks: Iterable[bytes], max_bytes: int | None, *, what: str = "file", param: str = "file"
) -> Iterator[bytes]:
    """Yield the chunks. Raises: TooLarge past `max_bytes`."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if max_bytes is not None and size > max_bytes:
            raise TooLarge(
                f"The {what} is larger than {max_bytes} bytes, the most one {what} may have.", param=param
            )
        yield chunk


def insert_file(session: Session, stored: Stored, name: str, purpose: str, seconds: int | None) -> File:
    """Insert the row of stored bytes under a checked name and purpose; it lives `seconds`, or on."""
    now = clock.now()
    file = File(
        id=stored.id,
        project_id=stored.project_id,
        filename=name,
        purpose=purpose,
        bytes=stored.bytes,
        sha256=stored.sha256,
        # Never `uploaded`: the SDK's wait_for_processing would wait for its whole half hour.
        status="processed",
        created_at=now,
        expires_at=None if seconds is None else now + seconds,
    )
    session.add(file)
    session.flush()
    return file


def lifetime(expires_after: Mapping[str, Any] | None, *, purpose: str) -> int | None:
    """Return the seconds a file shall live, or None for ever. Raises: InvalidRequest.

    Source: OpenAI's file objects; batch files live for 30 days unless told otherwise.
    """
    if not expires_after:
        return EXPIRES_MAX if purpose == "batch" else None
    for name in expires_after:
        if name not in ("anchor", "seconds"):
            raise refusals.unknown(f"expires_after.{name[:80]}")
    if expires_after.get("anchor") != "created_at":
        raise refusals.invalid("the only supported value is 'created_at'", "expires_after.anchor")
    text = str(expires_after.get("seconds", ""))
    seconds = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else -1
    if not EXPIRES_MIN <= seconds <= EXPIRES_MAX:
        wanted = f"expected an integer from {EXPIRES_MIN} to {EXPIRES_MAX}, but got {text[:40]!r}"
        raise refusals.invalid(wanted, "expires_after.seconds")
    return seconds


def _is_alive() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > clock.now())


def remove_after_commit(session: Session, storage: Storage, uris: Iterable[str]) -> None:
    """Remove bytes once the transaction that forgets them has committed; a rollback keeps them."""
    doomed = tuple(uris)

    def remove(_session: Session) -> None:
        for uri in doomed:
            storage.remove(uri)

    event.listen(session, "after_commit", remove, once=True)

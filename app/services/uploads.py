"""Uploads: a large file that comes in parts, sent in any order and joined in the order completion names.

Parts' bytes are stored before their row's transaction begins; joining copies them outside any transaction.
Called by the API's routes and, to end what was left behind, by the worker's sweep.

Source: https://platform.openai.com/docs/api-reference/uploads
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.core import clock, ids, refusals
from app.core.errors import InvalidRequest, NotFound
from app.core.settings import Settings
from app.core.storage import Storage
from app.core.tables import File, Upload, UploadPart
from app.services import files

LIFE_SECONDS = 3_600
PARTS_MOST = 10_000
# Parts sent again after a lost answer count too, so there is room for every part twice.
_SLACK = 2


@dataclass(frozen=True, slots=True)
class Joint:
    """What a completion will join: parts in their order, and what the whole must be."""

    upload_id: str
    project_id: str
    part_ids: tuple[str, ...]
    md5: str | None


def create_upload(
    session: Session,
    *,
    settings: Settings,
    project_id: str,
    size: int,
    filename: str,
    mime_type: str,
    purpose: str,
    expires_after: Mapping[str, Any] | None = None,
) -> Upload:
    """Open an upload of `size` bytes, which must be completed within the hour. Raises: InvalidRequest."""
    if not 1 <= size <= settings.max_upload_bytes:
        raise refusals.invalid(f"it must be from 1 to {settings.max_upload_bytes}", "bytes")
    if not 1 <= len(mime_type) <= 255 or not mime_type.isprintable():
        raise refusals.invalid("it must be 1 to 255 printable characters long", "mime_type")
    now = clock.now()
    upload = Upload(
        id=ids.new_id("upload"),
        project_id=project_id,
        status="pending",
        filename=files.checked_label(filename, purpose, param="filename"),
        purpose=purpose,
        mime_type=mime_type,
        bytes=size,
        file_lifetime=files.lifetime(expires_after, purpose=purpose),
        created_at=now,
        expires_at=now + LIFE_SECONDS,
    )
    session.add(upload)
    session.flush()
    return upload


def get_upload(session: Session, *, project_id: str, upload_id: str, locked: bool = False) -> Upload:
    """Return one of the project's uploads. Raises: NotFound."""
    query = select(Upload).where(Upload.project_id == project_id, Upload.id == upload_id)
    if locked:
        query = query.with_for_update()
    upload = session.scalars(query).one_or_none()
    if upload is None:
        raise NotFound(f"No such Upload object: {upload_id}", param="upload_id")
    return upload


def status(upload: Upload) -> str:
    """Return the upload's status now: one nobody completed in time has expired, swept or not."""
    is_late = upload.status == "pending" and upload.expires_at <= clock.now()
    return "expired" if is_late else upload.status


def pending_upload(session: Session, *, project_id: str, upload_id: str, locked: bool = False) -> Upload:
    """Return an upload that still takes parts. Raises: NotFound, InvalidRequest."""
    upload = get_upload(session, project_id=project_id, upload_id=upload_id, locked=locked)
    if (now := status(upload)) != "pending":
        raise InvalidRequest(
            f'Upload {upload_id} can no longer be changed: its status is "{now}".',
            param="upload_id",
            code="invalid_upload_state",
        )
    return upload


def store_part(
    storage: Storage, *, project_id: str, upload_id: str, chunks: Iterable[bytes], max_bytes: int
) -> files.Stored:
    """Write a part's bytes; a failure leaves nothing behind. Raises: TooLarge, StorageFull."""
    part_id = ids.new_id("part")
    uri = _part_uri(project_id, upload_id, part_id)
    size, digest = storage.write(uri, files.limited(chunks, max_bytes, what="part", param="data"))
    return files.Stored(part_id, project_id, uri, size, digest)


def add_part(session: Session, *, upload_id: str, stored: files.Stored) -> UploadPart:
    """Insert the row of a stored part. Raises: InvalidRequest when the upload takes no more."""
    # Locked, so that a part is either in before the completion or refused, never lost between.
    upload = pending_upload(session, project_id=stored.project_id, upload_id=upload_id, locked=True)
    if stored.bytes == 0:
        raise InvalidRequest("The part is empty.", param="data", code="empty_file")
    count, held = session.execute(
        select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(
            UploadPart.upload_id == upload_id
        )
    ).one()
    if count >= PARTS_MOST or held + stored.bytes > _SLACK * upload.bytes:
        raise refusals.invalid(
            f"the upload was declared to have {upload.bytes} bytes; its {count} parts hold {held} already",
            "data",
        )
    part = UploadPart(id=stored.id, upload_id=upload_id, bytes=stored.bytes, created_at=clock.now())
    session.add(part)
    session.flush()
    return part


def prepare_completion(
    session: Session, *, project_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None
) -> Joint | None:
    """Return what there is to join, or None when exactly this was completed before.

    Raises: NotFound, InvalidRequest when the parts don't make the declared whole.
    """
    upload = get_upload(session, project_id=project_id, upload_id=upload_id)
    # A client whose answer was lost asks again.
    if upload.status == "completed" and upload.part_ids == list(part_ids):
        return None
    pending_upload(session, project_id=project_id, upload_id=upload_id)
    query = select(UploadPart).where(UploadPart.upload_id == upload_id)
    sizes = {part.id: part.bytes for part in session.scalars(query)}
    seen: set[str] = set()
    for place, part_id in enumerate(part_ids):
        if part_id not in sizes:
            raise refusals.invalid(f"there is no part '{part_id[:100]}' in this upload", f"part_ids[{place}]")
        if part_id in seen:
            raise refusals.invalid(f"the part '{part_id}' stands twice", f"part_ids[{place}]")
        seen.add(part_id)
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != upload.bytes:
        raise refusals.invalid(
            f"the parts hold {total} bytes together, but the upload was declared to have {upload.bytes}",
            "part_ids",
        )
    if md5 is not None and not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
        raise refusals.invalid("expected 32 hexadecimal digits", "md5")
    return Joint(upload_id, project_id, tuple(part_ids), md5)


def join(storage: Storage, joint: Joint) -> files.Stored:
    """Write the parts as one file and return it. Raises: InvalidRequest when its MD5 is another."""
    digest = hashlib.md5(usedforsecurity=False)

    def joined() -> Iterator[bytes]:
        for part_id in joint.part_ids:
            for chunk in storage.chunks(_part_uri(joint.project_id, joint.upload_id, part_id)):
                digest.update(chunk)
                yield chunk

    try:
        stored = files.store_upload(storage, project_id=joint.project_id, chunks=joined())
    except FileNotFoundError:
        raise _ended_meanwhile(joint.upload_id) from None
    if joint.md5 is not None and not hmac.compare_digest(digest.hexdigest(), joint.md5.lower()):
        files.discard(storage, stored)
        raise refusals.invalid(
            f"the joined parts have the MD5 {digest.hexdigest()}: bytes are missing, changed or out of order",
            "md5",
        )
    return stored


def complete_upload(session: Session, *, storage: Storage, joint: Joint, stored: files.Stored) -> Upload:
    """Make the joined bytes a file and end the upload. Raises: InvalidRequest when it ended meanwhile."""
    won = session.scalar(
        update(Upload)
        .where(Upload.id == joint.upload_id, Upload.status == "pending", Upload.expires_at > clock.now())
        .values(status="completed", file_id=stored.id, part_ids=list(joint.part_ids))
        .returning(Upload.id),
        execution_options={"synchronize_session": False},
    )
    if won is None:
        raise _ended_meanwhile(joint.upload_id)
    upload = get_upload(session, project_id=joint.project_id, upload_id=joint.upload_id)
    files.insert_file(session, stored, upload.filename, upload.purpose, upload.file_lifetime)
    _forget_parts(session, storage, [upload])
    return upload


def cancel_upload(session: Session, *, storage: Storage, project_id: str, upload_id: str) -> Upload:
    """End an upload without a file; its parts go. Raises: NotFound, InvalidRequest."""
    upload = pending_upload(session, project_id=project_id, upload_id=upload_id, locked=True)
    upload.status = "cancelled"
    session.flush()
    _forget_parts(session, storage, [upload])
    return upload


def file_of(session: Session, upload: Upload) -> File | None:
    """Return the file a completed upload became, unless it is gone again."""
    return None if upload.file_id is None else session.get(File, upload.file_id)


def end_expired(session: Session, *, storage: Storage, limit: int = 100) -> int:
    """End up to `limit` uploads whose hour is over and return how many. Called by the sweep."""
    late = select(Upload).where(Upload.status == "pending", Upload.expires_at <= clock.now())
    uploads = session.scalars(late.limit(limit).with_for_update(skip_locked=True)).all()
    for upload in uploads:
        upload.status = "expired"
    session.flush()
    _forget_parts(session, storage, uploads)
    return len(uploads)


def _forget_parts(session: Session, storage: Storage, uploads: Sequence[Upload]) -> None:
    session.execute(delete(UploadPart).where(UploadPart.upload_id.in_([upload.id for upload in uploads])))
    # The whole folder: it may hold a part whose request died before its row.
    files.remove_after_commit(session, storage, [_folder(u.project_id, u.id) for u in uploads])


def _folder(project_id: str, upload_id: str) -> str:
    return f"uploads/{project_id}/{upload_id}"


def _part_uri(project_id: str, upload_id: str, part_id: str) -> str:
    return f"{_folder(project_id, upload_id)}/{part_id}"


def _ended_meanwhile(upload_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Upload {upload_id} was completed, cancelled or expired by another request meanwhile.",
        param="upload_id",
        code="invalid_upload_state",
    )

"""Files: bytes and rows come and go together, on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import clock
from app.core.db import Database
from app.core.errors import InvalidRequest, NotFound, TooLarge
from app.core.storage import Storage
from app.core.tables import File
from app.services import files, projects


@pytest.fixture
def project_id(database: Database) -> str:
    """A project for the files of a test."""
    with database.transaction() as session:
        return projects.default_project(session).id


def _stored(storage: Storage) -> list[Path]:
    return [path for path in storage.root.joinpath("files").rglob("*") if path.is_file()]


def _upload(
    database: Database, storage: Storage, project_id: str, name: str = "a.jsonl", **more: dict[str, str | int]
) -> File:
    stored = files.store_upload(storage, project_id=project_id, chunks=[b"{}\n", b"{}\n"])
    with files.kept_if_named(storage, stored), database.transaction() as session:
        return files.create_file(session, stored=stored, filename=name, purpose="fine-tune", **more)


def test_bytes_and_row_agree(database: Database, storage: Storage, project_id: str) -> None:
    file = _upload(database, storage, project_id)
    assert (file.bytes, file.status, file.expires_at) == (6, "processed", None)
    assert files.file_uri(file) == f"files/{project_id}/{file.id}"
    assert b"".join(storage.chunks(files.file_uri(file))) == b"{}\n{}\n"
    with database.reading() as session:
        assert files.get_file(session, project_id=project_id, file_id=file.id).sha256 == file.sha256
        with pytest.raises(NotFound):
            files.get_file(session, project_id="proj_other", file_id=file.id)


def test_a_refused_row_takes_its_bytes_along(database: Database, storage: Storage, project_id: str) -> None:
    with pytest.raises(InvalidRequest):
        _upload(database, storage, project_id, "a.csv")
    assert _stored(storage) == []


def test_too_many_bytes_leave_none(storage: Storage) -> None:
    with pytest.raises(TooLarge) as caught:
        files.store_upload(storage, project_id="p", chunks=[b"1234", b"5678"], max_bytes=7)
    assert caught.value.param == "file"
    assert _stored(storage) == []
    assert files.store_upload(storage, project_id="p", chunks=[b"1234", b"567"], max_bytes=7).bytes == 7


def test_an_upload_that_breaks_leaves_none(storage: Storage) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        files.store_upload(storage, project_id="p", chunks=broken())
    assert _stored(storage) == []


def test_bytes_go_only_when_the_deletion_has_committed(
    database: Database, storage: Storage, project_id: str
) -> None:
    file = _upload(database, storage, project_id)
    with pytest.raises(ZeroDivisionError), database.transaction() as session:
        files.delete_file(session, storage=storage, project_id=project_id, file_id=file.id)
        raise ZeroDivisionError
    assert len(_stored(storage)) == 1
    with database.transaction() as session:
        files.delete_file(session, storage=storage, project_id=project_id, file_id=file.id)
        assert len(_stored(storage)) == 1
    assert _stored(storage) == []
    with database.transaction() as session, pytest.raises(NotFound):
        files.delete_file(session, storage=storage, project_id=project_id, file_id=file.id)


def test_an_expired_file_is_gone_for_everyone_and_then_swept(
    database: Database, storage: Storage, project_id: str
) -> None:
    lasting = _upload(database, storage, project_id)
    brief = _upload(database, storage, project_id, expires_after={"anchor": "created_at", "seconds": "3600"})
    assert brief.expires_at == brief.created_at + 3600
    with database.transaction() as session:
        session.get_one(File, brief.id).expires_at = clock.now() - 1
    with database.reading() as session:
        with pytest.raises(NotFound):
            files.get_file(session, project_id=project_id, file_id=brief.id)
        assert [f.id for f in files.list_files(session, project_id=project_id).rows] == [lasting.id]
    with database.transaction() as session:
        assert files.delete_expired(session, storage=storage) == 1
    assert [path.name for path in _stored(storage)] == [lasting.id]
    with database.transaction() as session:
        assert files.delete_expired(session, storage=storage) == 0


def test_lists_page_in_both_orders_and_by_purpose(
    database: Database, storage: Storage, project_id: str
) -> None:
    ids = [_upload(database, storage, project_id, f"{n}.jsonl").id for n in range(4)]
    with database.transaction() as session:
        # The same moment: the id then decides, so that no row is shown twice or never.
        for file_id in ids:
            session.get_one(File, file_id).created_at = 5.0
        stored = files.store_upload(storage, project_id=project_id, chunks=[b"step\n1\n"])
        result = files.name_result(
            session, stored=stored, filename="step_metrics.csv", purpose="fine-tune-results"
        )
    with database.reading() as session:
        for order, wanted in (("asc", sorted(ids)), ("desc", sorted(ids, reverse=True))):
            seen: list[str] = []
            after = None
            while True:
                page = files.list_files(
                    session, project_id=project_id, purpose="fine-tune", limit=3, after=after, order=order
                )
                seen += [row.id for row in page.rows]
                if not page.has_more:
                    break
                after = seen[-1]
            assert seen == wanted
        newest = files.list_files(session, project_id=project_id, limit=1).rows
        assert [row.id for row in newest] == [result.id]
        with pytest.raises(InvalidRequest):
            files.list_files(session, project_id=project_id, after="file-none")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.jsonl", "a.jsonl"),
        ("", "upload"),
        ("..", ".."),
        ("/etc/passwd", "passwd"),
        ("a\\b\\c.jsonl", "c.jsonl"),
        ("x\r\nSet-Cookie: a", "xSet-Cookie: a"),
        ("\u202egnp.jsonl", "gnp.jsonl"),
        ("n" * 300, "n" * 255),
        ("n" * 300 + ".jsonl", "n" * 249 + ".jsonl"),
    ],
)
def test_a_name_becomes_a_label(given: str, kept: str) -> None:
    assert files.clean_name(given) == kept

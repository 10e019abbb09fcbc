"""Uploads in parts through the official client, and completions that don't add up."""

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from app.core import clock
from app.core.settings import Settings
from app.core.tables import Upload
from app.services import uploads
from tests.app.api.server import BOTH, LINES, Server

WHOLE = LINES * 40
PIECES = [WHOLE[:1_000], WHOLE[1_000:5_000], WHOLE[5_000:]]


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """Settings with limits small enough to be reached: a file may be larger than one body."""
    limits = {"max_file_bytes": 6_000, "max_part_bytes": 6_000, "max_upload_bytes": 100_000}
    return settings.model_copy(update=limits)


def _open(client: openai.OpenAI, size: int = len(WHOLE)) -> str:
    upload = client.uploads.create(
        bytes=size, filename="big.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    return upload.id


def _parts(server: Server) -> list[str]:
    folder = server.context.settings.root / "uploads"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@BOTH
def test_parts_sent_at_once_are_joined_in_the_order_named(client: openai.OpenAI, server: Server) -> None:
    upload = client.uploads.create(
        bytes=len(WHOLE),
        filename="big.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (upload.object, upload.status, upload.bytes, upload.filename, upload.purpose) == (
        "upload",
        "pending",
        len(WHOLE),
        "big.jsonl",
        "fine-tune",
    )
    assert upload.id.startswith("upload_")
    assert upload.expires_at == upload.created_at + 3600
    with ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece), PIECES))
    assert all(p.object == "upload.part" and p.upload_id == upload.id for p in sent)
    assert all(p.id.startswith("part_") for p in sent)
    done = client.uploads.complete(
        upload.id, part_ids=[p.id for p in sent], md5=hashlib.md5(WHOLE).hexdigest()
    )
    assert done.status == "completed"
    assert done.file is not None
    assert (done.file.bytes, done.file.filename, done.file.status) == (len(WHOLE), "big.jsonl", "processed")
    assert done.file.expires_at == done.file.created_at + 7200
    assert client.files.content(done.file.id).read() == WHOLE
    assert client.files.list().data[0].id == done.file.id
    assert _parts(server) == []
    # The answer was lost, the client asks again.
    assert client.uploads.complete(upload.id, part_ids=[p.id for p in sent]) == done
    assert len(server.stored()) == 1


def test_the_clients_own_chunked_upload(client: openai.OpenAI) -> None:
    done = client.uploads.upload_file_chunked(
        file=WHOLE, filename="c.jsonl", bytes=len(WHOLE), mime_type="x", purpose="fine-tune", part_size=4_096
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == WHOLE


def test_a_completion_that_does_not_add_up_is_refused_and_may_be_repeated(
    client: openai.OpenAI, server: Server
) -> None:
    upload = _open(client)
    a, b, c = [client.uploads.parts.create(upload, data=piece).id for piece in PIECES]
    other = client.uploads.parts.create(_open(client), data=b"{}").id
    md5 = hashlib.md5(WHOLE).hexdigest()
    for parts, checksum, param in (
        ([a, b], None, "part_ids"),
        ([a, b, b], None, "part_ids[2]"),
        ([a, b, other], None, "part_ids[2]"),
        (["part_x"], None, "part_ids[0]"),
        ([], None, "part_ids"),
        ([b, a, c], md5, "md5"),
        ([a, b, c], "0" * 32, "md5"),
        ([a, b, c], "no sum", "md5"),
    ):
        body = {"part_ids": parts} | ({} if checksum is None else {"md5": checksum})
        answer = server.raw("POST", f"/v1/uploads/{upload}/complete", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert server.stored() == []
    assert client.uploads.complete(upload, part_ids=[a, b, c], md5=md5.upper()).status == "completed"


def test_an_ended_upload_takes_nothing_more(client: openai.OpenAI, server: Server) -> None:
    finished, cancelled, expired = _open(client, len(LINES)), _open(client), _open(client)
    part = client.uploads.parts.create(finished, data=LINES).id
    client.uploads.complete(finished, part_ids=[part])
    client.uploads.parts.create(cancelled, data=LINES)
    gone = client.uploads.cancel(cancelled)
    assert (gone.status, gone.file) == ("cancelled", None)
    client.uploads.parts.create(expired, data=LINES)
    with server.context.db.transaction() as session:
        session.get_one(Upload, expired).expires_at = clock.now() - 1
    for upload, status in ((finished, "completed"), (cancelled, "cancelled"), (expired, "expired")):
        for call in (
            lambda u=upload: client.uploads.parts.create(u, data=LINES),
            lambda u=upload: client.uploads.complete(u, part_ids=[]),
            lambda u=upload: client.uploads.cancel(u),
        ):
            with pytest.raises(openai.BadRequestError, match=f'status is "{status}"') as caught:
                call()
            assert (caught.value.code, caught.value.param) == ("invalid_upload_state", "upload_id")
    assert len(_parts(server)) == 1
    with server.context.db.transaction() as session:
        assert uploads.end_expired(session, storage=server.context.storage) == 1
    assert _parts(server) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 100_001}, "bytes"),
        ({"bytes": "5"}, "bytes"),
        ({"bytes": None}, "bytes"),
        ({"purpose": "colour"}, "purpose"),
        ({"filename": "a.csv"}, "filename"),
        ({"filename": 5}, "filename"),
        ({"mime_type": ""}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 7200}}, "expires_after.anchor"),
        ({"expires_after": 7200}, "expires_after"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_malformed_upload_is_refused(server: Server, change: dict[str, object], param: str) -> None:
    body = {"bytes": 5, "filename": "a.jsonl", "mime_type": "x", "purpose": "fine-tune"} | change
    answer = server.raw("POST", "/v1/uploads", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_parts_have_limits_and_leave_nothing(client: openai.OpenAI, server: Server) -> None:
    upload = _open(client, 2_000)
    for data, status, param in (
        (b"", 400, "data"),
        (b"x" * 4_001, 400, "data"),
        (b"x" * 6_001, 413, "data"),
    ):
        answer = server.raw("POST", f"/v1/uploads/{upload}/parts", files={"data": ("p", data)})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    answer = server.raw("POST", f"/v1/uploads/{upload}/parts", files={"file": ("p", b"x")})
    assert answer.json()["error"]["param"] == "file"
    assert _parts(server) == []


def test_another_project_has_no_such_upload(client: openai.OpenAI, server: Server) -> None:
    upload = _open(client)
    _, key = server.new_key("other")
    stranger = client.with_options(api_key=key)
    for call in (
        lambda: stranger.uploads.parts.create(upload, data=LINES),
        lambda: stranger.uploads.complete(upload, part_ids=[]),
        lambda: stranger.uploads.cancel(upload),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.param == "upload_id"


def test_a_full_disk_is_507_leaves_nothing_and_may_be_tried_again(
    client: openai.OpenAI, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    upload = _open(client, len(LINES))
    part = client.uploads.parts.create(upload, data=LINES).id
    monkeypatch.setattr(os, "fsync", full)
    answers = [
        server.raw("POST", f"/v1/uploads/{upload}/parts", files={"data": ("p", b"x")}),
        server.raw("POST", f"/v1/uploads/{upload}/complete", json={"part_ids": [part]}),
    ]
    monkeypatch.undo()
    for answer in answers:
        assert answer.status_code == 507
        assert answer.headers["x-should-retry"] == "false"
    assert (_parts(server), server.stored()) == ([part], [])
    assert client.uploads.complete(upload, part_ids=[part]).status == "completed"

"""Files through the official client, and forms no client would send."""

import errno
import io
import os
import socket
import tracemalloc
from collections.abc import Iterator

import openai
import pytest

from tests.app.api.server import LINES, Server, serving, wait_until


def _form(*parts: tuple[str, str | None, bytes], boundary: str = "xYx") -> bytes:
    body = b""
    for name, filename, value in parts:
        file_name = "" if filename is None else f'; filename="{filename}"'
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file_name}\r\n\r\n'.encode()
        body += value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


FILE = ("file", "a.jsonl", LINES)
PURPOSE = ("purpose", None, b"fine-tune")
GOOD = _form(FILE, PURPOSE)
FORM = {"content-type": "multipart/form-data; boundary=xYx"}


def test_a_file_goes_round(client: openai.OpenAI, server: Server) -> None:
    file = client.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == (
        "file",
        len(LINES),
        "train.jsonl",
        "fine-tune",
    )
    assert file.status == "processed"
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).id == file.id
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == LINES
    assert len(server.stored()) == 1
    gone = client.files.delete(file.id)
    assert (gone.id, gone.object, gone.deleted) == (file.id, "file", True)
    assert server.stored() == []
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert caught.value.body == {
        "message": f"No such File object: {file.id}",
        "type": "invalid_request_error",
        "param": "id",
        "code": None,
    }


def test_the_object_has_every_key(server: Server) -> None:
    answer = server.raw(
        "POST",
        "/v1/files",
        headers=FORM,
        content=_form(FILE, PURPOSE),
    )
    assert answer.status_code == 200
    assert set(answer.json()) == {
        "id",
        "object",
        "bytes",
        "created_at",
        "expires_at",
        "filename",
        "purpose",
        "status",
        "status_details",
    }


def test_content_is_an_attachment_whatever_is_accepted(server: Server, training_file: str) -> None:
    for accept in ("application/binary", "application/json", "text/html"):
        answer = server.raw("GET", f"/v1/files/{training_file}/content", headers={"accept": accept})
        assert answer.status_code == 200
        assert answer.content == LINES
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"] == 'attachment; filename="train.jsonl"'


def test_an_upload_may_be_chunked_with_the_file_first(server: Server) -> None:
    whole = _form(
        ("file", "node.jsonl", LINES),
        PURPOSE,
        ("expires_after[anchor]", None, b"created_at"),
        ("expires_after[seconds]", None, b"3600"),
    )

    def bytes_one_by_one() -> Iterator[bytes]:
        # Boundaries split at every place.
        for place in range(len(whole)):
            yield whole[place : place + 1]

    answer = server.raw("POST", "/v1/files", headers=FORM, content=bytes_one_by_one())
    assert answer.status_code == 200, answer.text
    assert "content-length" not in answer.request.headers
    file = answer.json()
    assert file["expires_at"] == file["created_at"] + 3600
    content = server.raw("GET", f"/v1/files/{file['id']}/content")
    assert content.content == LINES


def test_expires_after_through_the_client(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("a.jsonl", LINES), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert file.expires_at == file.created_at + 7200


def test_listing_pages_both_ways(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=(f"{n}.jsonl", LINES), purpose="fine-tune").id for n in range(5)]
    other = client.files.create(file=("notes.txt", b"words"), purpose="user_data").id
    page = client.files.list(limit=2, purpose="fine-tune")
    assert page.has_more
    assert [file.id for file in page.data] == [ids[4], ids[3]]
    assert [file.id for file in client.files.list(limit=2, purpose="fine-tune")] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == [*ids, other]
    assert client.files.list().data[0].id == other


def test_a_list_names_its_ends(server: Server, training_file: str) -> None:
    full = server.raw("GET", "/v1/files").json()
    assert (full["object"], full["first_id"], full["last_id"], full["has_more"]) == (
        "list",
        training_file,
        training_file,
        False,
    )
    empty = server.raw("GET", "/v1/files?purpose=batch").json()
    assert empty == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ((PURPOSE,), "file", "missing_required_parameter"),
        ((FILE,), "purpose", "missing_required_parameter"),
        ((("file", None, LINES), PURPOSE), "file", "invalid_type"),
        ((("file", "a.jsonl", b""), PURPOSE), "file", "empty_file"),
        ((("file", "a.csv", LINES), PURPOSE), "file", "invalid_file_format"),
        ((("file", "jsonl", LINES), ("purpose", None, b"batch")), "file", "invalid_file_format"),
        ((FILE, ("purpose", None, b"fine-tune-results")), "purpose", "invalid_value"),
        ((FILE, ("purpose", None, b"\x00\xff")), "purpose", "invalid_value"),
        (
            (FILE, PURPOSE, ("colour", None, b"red")),
            "colour",
            "unknown_parameter",
        ),
        (
            (
                FILE,
                PURPOSE,
                ("expires_after[seconds]", None, b"7200"),
            ),
            "expires_after.anchor",
            "invalid_value",
        ),
        (
            (
                FILE,
                PURPOSE,
                ("expires_after[anchor]", None, b"created_at"),
                ("expires_after[seconds]", None, b"1e9"),
            ),
            "expires_after.seconds",
            "invalid_value",
        ),
        (
            (FILE, ("file", "b.jsonl", LINES), PURPOSE),
            None,
            "invalid_form",
        ),
        (tuple(PURPOSE for _ in range(20)), None, "invalid_form"),
        ((("purpose", None, b"x" * 70_000), FILE), None, "invalid_form"),
    ],
)
def test_a_bad_form_is_refused_and_leaves_nothing(
    server: Server, parts: tuple[tuple[str, str | None, bytes], ...], param: str | None, code: str
) -> None:
    answer = server.raw("POST", "/v1/files", headers=FORM, content=_form(*parts))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert server.stored() == []
    assert server.raw("GET", "/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not a form",
        b"--xYx\r\n\r\nno headers\r\n--xYx--\r\n",
        GOOD[:-8],
        b"--other\r\n" + LINES,
        b'--xYx\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nhalf',
        b"--xYx\r\n" + b"X-Header: 1\r\n" * 500 + b"\r\n\r\n--xYx--\r\n",
    ],
)
def test_a_broken_form_is_refused_and_leaves_nothing(server: Server, body: bytes) -> None:
    answer = server.raw("POST", "/v1/files", headers=FORM, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert server.stored() == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'b' * 300}",
    ],
)
def test_another_content_type_is_refused(server: Server, content_type: str) -> None:
    answer = server.raw("POST", "/v1/files", headers={"content-type": content_type}, content=b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_content_type")


def test_an_upload_that_breaks_off_leaves_nothing(server: Server) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.key}\r\n"
        "Content-Type: multipart/form-data; boundary=xYx\r\nContent-Length: 100000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + _form(("file", "a.jsonl", LINES * 100))[:5000])
        wait_until(lambda: server.stored() != [])
    wait_until(lambda: server.stored() == [])
    assert server.raw("GET", "/v1/files").json()["data"] == []


def test_a_file_over_the_limit_is_413_however_it_is_sent(server: Server, client: openai.OpenAI) -> None:
    big = b"x" * 200_001
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("big.jsonl", big), purpose="fine-tune")
    assert caught.value.status_code == 413
    assert "200000 bytes" in caught.value.message
    whole = _form(("file", "big.jsonl", b"x" * 2_000_000), PURPOSE)
    for content in (whole, (whole[i : i + 65536] for i in range(0, len(whole), 65536))):
        answer = server.raw("POST", "/v1/files", headers=FORM, content=content)
        assert answer.status_code == 413
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["connection"] == "close"
    assert server.stored() == []
    exact = client.files.create(file=("big.jsonl", big[:-1]), purpose="fine-tune")
    assert exact.bytes == 200_000


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("C:\\\\Users\\\\me\\\\data.jsonl", "data.jsonl"),
        ("tab\there.jsonl", "tabhere.jsonl"),
        ("n" * 400 + ".jsonl", "n" * 249 + ".jsonl"),
        ("заявки – señal.JSONL", "заявки – señal.JSONL"),
    ],
)
def test_a_file_name_is_only_a_label(server: Server, sent: str, kept: str) -> None:
    form = _form(("file", sent, LINES), PURPOSE)
    answer = server.raw("POST", "/v1/files", headers=FORM, content=form)
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file["filename"] == kept
    assert server.stored() == [f"{server.project_id}/{file['id']}"]
    content = server.raw("GET", f"/v1/files/{file['id']}/content")
    assert content.content == LINES
    assert content.headers["content-disposition"].startswith("attachment; filename")


def test_other_projects_see_nothing(server: Server, client: openai.OpenAI, training_file: str) -> None:
    _, key = server.new_key("other")
    other = client.with_options(api_key=key)
    assert other.files.list().data == []
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(training_file)
    with pytest.raises(openai.BadRequestError):
        other.files.list(after=training_file)
    assert client.files.retrieve(training_file).id == training_file


def test_a_large_file_is_not_held_in_memory(server: Server) -> None:
    roomy = server.context.settings.model_copy(update={"max_file_bytes": 2**30})
    head, tail = _form(("file", "a.jsonl", b""), PURPOSE).split(b"\r\n\r\n", 1)

    def chunks() -> Iterator[bytes]:
        yield head + b"\r\n\r\n"
        for _ in range(640):
            yield b"y" * 65536
        yield tail

    with serving(roomy) as wide:
        tracemalloc.start()
        try:
            answer = wide.raw("POST", "/v1/files", headers=FORM, content=chunks(), timeout=60)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.json()["bytes"] == 640 * 65536
    # The file has 40 MB; client and server together hold a few chunks of it.
    assert peak < 8_000_000


def test_an_io_base_goes_up_as_well(client: openai.OpenAI) -> None:
    stream = io.BytesIO(LINES)
    stream.name = "stream.jsonl"
    assert client.files.create(file=stream, purpose="fine-tune").filename == "stream.jsonl"


def test_a_full_disk_is_507_and_not_retried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = server.raw("POST", "/v1/files", headers=FORM, content=GOOD)
    monkeypatch.undo()
    assert answer.status_code == 507
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert server.stored() == []

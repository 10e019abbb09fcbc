"""What is refused before a route sees it: foreign hosts, missing keys, large bodies."""

import time

import openai
import pytest
from sqlalchemy import select

from app.api.guard import HostGuard
from app.core import clock
from app.core.settings import Settings
from app.core.tables import ApiKey
from app.services import api_keys
from tests.app.api.server import Server, count_queries

ENVELOPE = {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("header", "start", "code"),
    [
        (None, "You didn't provide an API key", None),
        ("", "You didn't provide an API key", None),
        ("Basic c2stYWJj", "You didn't provide an API key", None),
        ("Bearer", "You didn't provide an API key", None),
        ("Bearer sk-wrong", "Incorrect API key provided: ****", "invalid_api_key"),
        (
            "Bearer sk-abcdefgh-" + "x" * 40 + "-00000000",
            "Incorrect API key provided: sk-abcd",
            "invalid_api_key",
        ),
    ],
)
def test_a_request_without_a_good_key_is_401(
    server: Server, header: str | None, start: str, code: str | None
) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/files"), ("GET", "/v1/nowhere")):
        answer = server.raw(method, path, headers={"authorization": header})
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert set(error) == ENVELOPE
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert error["message"].startswith(start)
        assert answer.headers["x-request-id"].startswith("req_")


def test_the_client_raises_its_own_error(server: Server) -> None:
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-nonsense", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_revoked_key_is_401_at_once(server: Server) -> None:
    assert server.raw("GET", "/v1/models").status_code == 200
    with server.context.db.transaction() as session:
        [key] = api_keys.list_keys(session, project_id=server.project_id)
        api_keys.revoke_key(session, project_id=server.project_id, key_id=key.id)
    assert server.raw("GET", "/v1/models").status_code == 401


def test_a_key_s_last_use_is_noted_once_a_minute(server: Server) -> None:
    def last_use() -> float | None:
        with server.context.db.reading() as session:
            return session.scalars(select(ApiKey)).one().last_used_at

    assert last_use() is None
    first = count_queries(server.context, lambda: server.raw("GET", "/v1/models"))
    noted = last_use()
    assert noted is not None and abs(noted - clock.now()) < 60
    assert count_queries(server.context, lambda: server.raw("GET", "/v1/models")) < first
    assert last_use() == noted


def test_no_byte_of_a_body_is_needed_to_refuse_a_stranger(server: Server) -> None:
    answer = server.talk(
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401")


def test_a_json_body_over_the_limit_is_413_however_it_is_sent(server: Server) -> None:
    body = b'{"model": "' + b"x" * 60_000 + b'"}'
    pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
    for content in (body, pieces):
        answer = server.raw(
            "POST", "/v1/fine_tuning/jobs", headers={"content-type": "application/json"}, content=content
        )
        assert answer.status_code == 413
        assert set(answer.json()["error"]) == ENVELOPE
        assert "50000 bytes" in answer.json()["error"]["message"]


def test_a_declared_size_over_the_limit_is_refused_unsent(server: Server) -> None:
    answer = server.talk(
        b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Authorization: Bearer " + server.key.encode() + b"\r\n"
        b"Content-Type: application/json\r\nContent-Length: 99999999999999999999999\r\n\r\n"
    )
    assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_a_client_that_sends_nothing_gets_its_401_in_the_end(server: Server) -> None:
    started = time.monotonic()
    answer = server.talk(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401")
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:8000"]
)
def test_a_foreign_host_is_refused_everywhere(server: Server, host: str) -> None:
    for path in ("/v1/models", "/healthz", "/", "/v1"):
        answer = server.raw("GET", path, headers={"host": host})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "testserver", "192.168.1.5"]
)
def test_our_own_names_are_answered(server: Server, host: str) -> None:
    assert server.raw("GET", "/healthz", headers={"host": host}).json() == {"status": "ok"}


def test_allowed_hosts_are_a_setting() -> None:
    async def nothing(*_: object) -> None: ...

    guard = HostGuard(nothing, settings=Settings(host="tunes.example", allowed_hosts="a.example, B.example"))
    for host in ("tunes.example", "a.example:443", "b.example"):
        assert guard.is_ours(host)
    for host in (
        "c.example",
        "a.example.",
        "xa.example",
        "[evil",
        "a.example:1:2",
        "evil.example:80:127.0.0.1",
    ):
        assert not guard.is_ours(host)

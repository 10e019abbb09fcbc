"""The assembled web process: its health, its heartbeat, its log, and where pages and API part."""

import logging
from collections.abc import Iterator

import pytest

from app.core import clock, migrate
from app.core.settings import Settings
from app.services import heartbeats
from tests.app.api.server import Server, serving, wait_until


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    """A running web process on a fresh database."""
    migrate.upgrade(settings)
    with serving(settings) as server:
        yield server


def test_health_needs_no_key(server: Server) -> None:
    answer = server.raw("GET", "/healthz", headers={"authorization": None})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_health_fails_with_the_database(server: Server) -> None:
    path = server.context.settings.root / "tunesmith.db"
    # Another file under its name: what kept connections still see is no longer what is there.
    path.rename(path.with_suffix(".moved"))
    path.write_bytes(b"not a database " * 1000)
    assert server.raw("GET", "/healthz").status_code == 503


def test_the_web_part_beats(server: Server) -> None:
    def is_alive() -> bool:
        with server.context.db.reading() as session:
            beats = {row.part: row for row in heartbeats.list_heartbeats(session)}
        return "web" in beats and abs(beats["web"].beat_at - clock.now()) < 30

    wait_until(is_alive)


def test_pages_and_api_answer_errors_in_their_own_form(server: Server) -> None:
    page, wire = server.raw("GET", "/nowhere"), server.raw("GET", "/v1/nowhere")
    assert (page.status_code, wire.status_code) == (404, 404)
    assert page.headers["content-type"].startswith("text/html")
    assert wire.json()["error"]["type"] == "invalid_request_error"
    for answer in (page, wire):
        assert answer.headers["x-request-id"].startswith("req_")
    assert "openai-version" not in page.headers


def test_the_log_names_each_request_without_its_query(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="app.api.stamp"):
        answer = server.raw("GET", "/v1/files?after=secret%0atext")
        server.raw("GET", "/v1/files/a%0ab")
    lines = [record.getMessage() for record in caplog.records if record.name == "app.api.stamp"]
    assert lines[0].startswith(f"{answer.headers['x-request-id']} GET '/v1/files' 400 ")
    assert "secret" not in "".join(lines)
    assert all("\n" not in line for line in lines)

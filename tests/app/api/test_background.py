"""Responses in the background through the official client: retrieved, cancelled, deleted, and lost."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.api import background
from app.core import migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Response as Row
from app.services import responses
from tests.app.api.server import BOTH, MODEL, Server, serving, wait_until
from tests.engine import EngineServer, engine_running


@pytest.fixture
def engine(server: Server) -> Iterator[EngineServer]:
    """An engine that answers for the base model."""
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        yield engine


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is busy or away is asked for a while, and not for minutes."""
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.1)


def _begin(client: openai.OpenAI, text: str = "one two") -> Response:
    return client.responses.create(model=MODEL, input=text, background=True)


def _status(client: openai.OpenAI, response_id: str, *wanted: str) -> Response:
    wait_until(lambda: client.responses.retrieve(response_id).status in wanted)
    return client.responses.retrieve(response_id)


@BOTH
def test_it_is_made_while_nobody_waits(client: openai.OpenAI, server: Server, engine: EngineServer) -> None:
    engine.delay = 1.5
    begun = _begin(client)
    assert (begun.status, begun.background, begun.output, begun.usage) == ("queued", True, [], None)
    with pytest.raises(openai.BadRequestError, match="under way") as refused:
        client.responses.create(model=MODEL, input="three", previous_response_id=begun.id)
    assert refused.value.code == "previous_response_not_ended"
    made = _status(client, begun.id, "completed")
    assert made.output_text == "two one"
    assert made.usage is not None
    assert made.usage.output_tokens == 2
    assert made.id == begun.id
    assert made.created_at == begun.created_at
    further = client.responses.create(model=MODEL, input="three", previous_response_id=made.id)
    assert further.output_text == "three"
    # One that has ended stays as it is.
    assert client.responses.cancel(made.id).to_dict() == made.to_dict()


def test_one_that_is_being_said_is_in_progress(client: openai.OpenAI, engine: EngineServer) -> None:
    engine.pause = 0.3
    begun = _begin(client, " ".join(f"word{n}" for n in range(40)))
    partly = _status(client, begun.id, "in_progress")
    assert partly.output == []
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert engine.left.wait(10)
    assert client.responses.retrieve(begun.id).status == "cancelled"


@BOTH
def test_a_cancelled_one_ends_the_engines_work(
    client: openai.OpenAI, server: Server, engine: EngineServer
) -> None:
    engine.delay = 60.0
    begun = _begin(client)
    assert client.responses.cancel(begun.id).status == "cancelled"
    wait_until(engine.left.is_set)
    for answer in (client.responses.retrieve(begun.id), client.responses.cancel(begun.id)):
        assert (answer.status, answer.output) == ("cancelled", [])


def test_a_deleted_one_ends_the_engines_work(client: openai.OpenAI, engine: EngineServer) -> None:
    engine.delay = 60.0
    begun = _begin(client)
    client.responses.delete(begun.id)
    wait_until(engine.left.is_set)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        (lambda engine: setattr(engine, "refusal", (429, {})), "rate_limit_exceeded", ""),
        (
            lambda engine: setattr(engine, "refusal", (400, {"error": {"message": "too long"}})),
            "invalid_prompt",
            "too long",
        ),
        (lambda engine: setattr(engine, "breaks", (2, b"data: nothing\n\n")), "server_error", "read"),
    ],
    ids=["busy", "refused", "garbled"],
)
def test_one_that_fails_says_why(
    client: openai.OpenAI,
    engine: EngineServer,
    behaviour: Callable[[EngineServer], None],
    code: str,
    message: str,
) -> None:
    behaviour(engine)
    failed = _status(client, _begin(client).id, "failed")
    assert failed.error is not None
    assert failed.error.code == code
    assert message in failed.error.message


def test_a_busy_engine_is_asked_again(
    client: openai.OpenAI, engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 60.0)
    engine.refusal = (429, {})
    begun = _begin(client)
    wait_until(lambda: len(engine.asked) > 2)
    assert client.responses.retrieve(begun.id).status == "queued"
    engine.refusal = None
    assert _status(client, begun.id, "completed").output_text == "two one"


@pytest.mark.parametrize("bound", ["MOST", "MOST_OF_PROJECT"])
def test_so_many_and_no_more(
    client: openai.OpenAI,
    server: Server,
    engine: EngineServer,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
) -> None:
    monkeypatch.setattr(background, bound, 3)
    engine.delay = 60.0
    with ThreadPoolExecutor(12) as threads:
        tried = [threads.submit(_begin, client.with_options(max_retries=0)) for _ in range(12)]
    begun = [one.result() for one in tried if one.exception() is None]
    refused = [one.exception() for one in tried if one.exception() is not None]
    assert len(begun) == 3
    assert {type(problem) for problem in refused} == {openai.RateLimitError}
    _, key = server.new_key("other")
    other = client.with_options(api_key=key, max_retries=0)
    if bound == "MOST":
        with pytest.raises(openai.RateLimitError, match="by this service"):
            _begin(other)
    else:
        _begin(other)
    client.responses.cancel(begun[0].id)
    wait_until(engine.left.is_set)
    wait_until(lambda: _begins(client))


def _begins(client: openai.OpenAI) -> bool:
    try:
        return _begin(client.with_options(max_retries=0)).status == "queued"
    except openai.RateLimitError:
        return False


def test_an_end_that_is_not_written_is_written_later(
    client: openai.OpenAI, engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, tries = responses.finish, []

    def fails_first(session: Session, answer: dict[str, Any]) -> None:
        tries.append(answer["id"])
        if len(tries) == 1:
            raise OperationalError("", {}, Exception("database is locked"))
        finish(session, answer)

    monkeypatch.setattr(responses, "finish", fails_first)
    begun = _begin(client)
    assert _status(client, begun.id, "completed").output_text == "two one"
    assert tries == [begun.id] * 2


def test_a_database_that_is_slow_leaves_the_others_alone(
    client: openai.OpenAI, engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More ends wait to be written than the web process has threads, and everybody else is answered."""
    engine.delay = 2.0
    begun = [_begin(client) for _ in range(50)]
    finish, released = responses.finish, threading.Event()

    def slow(session: Session, answer: dict[str, Any]) -> None:
        released.wait(60)
        finish(session, answer)

    monkeypatch.setattr(responses, "finish", slow)
    wait_until(lambda: len(engine.asked) == len(begun))
    time.sleep(engine.delay + 0.5)
    try:
        assert client.with_options(timeout=20).models.retrieve(MODEL).id == MODEL
    finally:
        released.set()
    for one in begun:
        _status(client, one.id, "completed")


@BOTH
def test_a_cancel_does_not_undo_an_end(
    client: openai.OpenAI, server: Server, engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is written while a cancelling transaction has begun: whoever is first has the last word."""
    engine.delay = 60.0
    begun = _begin(client)
    whole, looked = responses.whole, threading.Event()

    def slow(session: Session, row: Row) -> dict[str, Any]:
        answer = whole(session, row)
        if not looked.is_set():
            looked.set()
            time.sleep(0.5)
        return answer

    monkeypatch.setattr(responses, "whole", slow)
    with ThreadPoolExecutor(1) as threads:
        cancelling = threads.submit(client.responses.cancel, begun.id)
        assert looked.wait(10)
        with server.context.db.transaction() as session:
            responses.finish(session, begun.to_dict() | {"status": "completed"})
            row = responses.get_response(session, project_id=server.project_id, response_id=begun.id)
            seen = row.answer["status"]
        told = cancelling.result().status
    assert (seen, told) == ("cancelled", "cancelled")
    assert client.responses.retrieve(begun.id).status == told


def test_a_process_that_stops_writes_what_is_ready(
    api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(api_settings)
    finish, writing = responses.finish, threading.Event()

    def slow(session: Session, answer: dict[str, Any]) -> None:
        writing.set()
        time.sleep(0.5)
        finish(session, answer)

    monkeypatch.setattr(responses, "finish", slow)
    with engine_running() as engine, serving(api_settings) as server:
        engine.write_providers(api_settings.root, MODEL)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
        begun = _begin(client)
        client.close()
        assert writing.wait(10)
    context = Context.build(api_settings)
    with context.db.reading() as session:
        row = responses.get_response(session, project_id=server.project_id, response_id=begun.id)
        assert responses.whole(session, row)["status"] == "completed"
    context.db.dispose()


def test_without_an_engine_nothing_is_begun(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        _begin(client)
    assert refused.value.status_code == 503
    with server.context.db.reading() as session:
        assert session.query(Row).filter_by(project_id=server.project_id).count() == 0


@BOTH
def test_one_whose_maker_is_gone_has_failed(
    client: openai.OpenAI, server: Server, engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shorter than the time between two renewals: it ends as if nobody renewed it.
    monkeypatch.setattr(responses, "LEASE_SECONDS", 0.2)
    engine.delay = 60.0
    begun = _begin(client)
    lost = _status(client, begun.id, "failed")
    assert lost.error is not None
    assert "stopped while it made this response" in lost.error.message
    wait_until(engine.left.is_set)
    engine.delay = 0.0
    further = client.responses.create(model=MODEL, input="three", previous_response_id=begun.id)
    assert further.output_text == "three"
    assert client.responses.cancel(begun.id).status == "failed"


def test_a_process_that_stops_lets_go(api_settings: Settings) -> None:
    migrate.upgrade(api_settings)
    with engine_running() as engine:
        with serving(api_settings) as server:
            engine.write_providers(api_settings.root, MODEL)
            engine.delay = 60.0
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
            begun = _begin(client)
            client.close()
        assert engine.left.wait(10)
    context = Context.build(api_settings)
    with context.db.reading() as session:
        row = responses.get_response(session, project_id=server.project_id, response_id=begun.id)
        assert responses.whole(session, row)["status"] == "failed"
    context.db.dispose()

"""Responses in the background through the official client: retrieved, cancelled, deleted, and lost."""

from collections.abc import Callable, Iterator

import openai
import pytest
from openai.types.responses import Response

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


def test_what_is_said_so_far_can_be_read(client: openai.OpenAI, engine: EngineServer) -> None:
    engine.pause = 0.3
    begun = _begin(client, " ".join(f"word{n}" for n in range(20)))
    wait_until(lambda: "word19 word18" in client.responses.retrieve(begun.id).output_text)
    partly = client.responses.retrieve(begun.id)
    assert partly.status == "in_progress"
    ended = client.responses.cancel(begun.id)
    assert ended.status == "cancelled"
    assert ended.output_text.startswith("word19 word18")
    assert ended.output[0].to_dict()["status"] == "incomplete"


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

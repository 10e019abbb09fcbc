"""Detail 20: streams and what is stored, answered by a foreign engine over the running server.

Source: as in `test_jobs_details.py`.
"""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.app.api.server import MODEL, Server
from tests.engine import EngineServer, engine_running

MESSAGES: Any = [{"role": "user", "content": "one two"}]


@pytest.fixture
def engine(server: Server) -> Iterator[EngineServer]:
    """An engine that answers for the base model."""
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        yield engine


def test_detail_20_a_chat_stream_ends_with_usage_and_the_mark(server: Server, engine: EngineServer) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    answer = server.raw("POST", "/v1/chat/completions", json=body)
    *lines, mark = answer.text.strip().split("\n\n")
    assert mark == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 4)
    assert {str(chunk["usage"]) for chunk in chunks[:-1]} == {"None"}


def test_detail_20_an_error_stands_in_the_stream(server: Server, engine: EngineServer) -> None:
    engine.breaks = (2, {"error": {"message": "out of memory"}})
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    answer = server.raw("POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 200
    last = answer.text.strip().split("\n\n")[-1]
    assert set(json.loads(last.removeprefix("data: "))["error"]) == {"message", "type", "param", "code"}


def test_detail_20_the_client_raises_it(client: openai.OpenAI, engine: EngineServer) -> None:
    engine.breaks = (2, {"error": {"message": "out of memory"}})
    with pytest.raises(openai.APIError, match="out of memory"):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))


def test_detail_20_chats_are_stored_only_when_asked(client: openai.OpenAI, engine: EngineServer) -> None:
    not_kept = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    kept = client.chat.completions.create(model=MODEL, messages=MESSAGES, store=True)
    assert [one.id for one in client.chat.completions.list()] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(not_kept.id)


def test_detail_20_a_response_streams_numbered_events_and_no_mark(
    client: openai.OpenAI, server: Server, engine: EngineServer
) -> None:
    body = {"model": MODEL, "input": "one two", "stream": True}
    answer = server.raw("POST", "/v1/responses", json=body)
    assert "[DONE]" not in answer.text
    events = [json.loads(block.split("\ndata: ")[1]) for block in answer.text.strip().split("\n\n")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    told = [event for event in events if event["type"].startswith("response.output_text.")]
    assert [event["logprobs"] for event in told] == [[], [], []]
    assert events[-1]["type"] == "response.completed"
    # Kept without being asked to.
    assert client.responses.retrieve(events[-1]["response"]["id"]).output_text == "two one"


def test_detail_20_the_client_reads_the_events(client: openai.OpenAI, engine: EngineServer) -> None:
    events = list(client.responses.create(model=MODEL, input="one two", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "two one"

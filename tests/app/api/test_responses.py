"""Responses through the official client, answered by a foreign engine: whole, as events, kept."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy.exc import OperationalError

from app.services import responses
from tests.app.api.server import BOTH, MODEL, Server, wait_until
from tests.engine import EngineServer, engine_running

TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


@pytest.fixture
def engine(server: Server) -> Iterator[EngineServer]:
    """An engine that answers for the base model."""
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        yield engine


def _events(server: Server, **asked: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, "stream": True, **asked}
    answer = server.raw("POST", "/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_a_response_has_every_key(client: openai.OpenAI, engine: EngineServer) -> None:
    made = client.responses.create(model=MODEL, input="one two", instructions="Be short.")
    assert made.output_text == "two one"
    found = made.to_dict()
    assert found["id"].startswith("resp_")
    [message] = found.pop("output")
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "two one", "annotations": [], "logprobs": []}],
    }
    assert found.pop("usage") == {
        "input_tokens": 4,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 6,
    }
    moments = {found.pop(key) for key in ("created_at", "completed_at")}
    assert all(moment == int(moment) > 0 for moment in moments)
    del found["id"]
    assert found == {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": MODEL,
        "background": False,
        "instructions": "Be short.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    assert engine.asked[0]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one two"},
    ]


def test_every_parameter_reaches_the_engine(client: openai.OpenAI, engine: EngineServer) -> None:
    flat: Any = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    made = client.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": [{"type": "input_text", "text": "one two three"}]}],
        max_output_tokens=16,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=1,
        include=["message.output_text.logprobs"],
        text={"format": flat, "verbosity": "low"},
        tools=[TOOL],
        tool_choice={"type": "function", "name": "look"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"a": "b"},
        truncation="disabled",
        background=False,
        user="me",
    )
    [asked] = engine.asked
    nested = {key: value for key, value in flat.items() if key != "type"}
    function = {key: value for key, value in TOOL.items() if key != "type"}
    told = {key: asked[key] for key in asked if key not in ("stream", "stream_options")}
    assert told == {
        "model": "vendor/base",
        "messages": [{"role": "user", "content": "one two three"}],
        "max_completion_tokens": 16,
        "temperature": 0.5,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {"type": "json_schema", "json_schema": nested},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    }
    found = made.to_dict()
    assert found["text"] == {"format": flat, "verbosity": "low"}
    assert found["tools"] == [TOOL | {"description": None}]
    assert (found["metadata"], found["reasoning"]) == ({"a": "b"}, {"effort": "low", "summary": "auto"})
    first = found["output"][0]["content"][0]["logprobs"][0]
    assert (first["token"], first["bytes"], len(first["top_logprobs"])) == ("three", list(b"three"), 1)


def test_a_text_streams_in_order(server: Server, engine: EngineServer) -> None:
    events = _events(server, input="one two", top_logprobs=0)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[2]["item"]["content"] == []
    deltas = events[4:6]
    assert [event["delta"] for event in deltas] == ["two", " one"]
    assert [event["logprobs"][0]["token"] for event in deltas] == ["two", " one"]
    assert (events[6]["text"], len(events[6]["logprobs"])) == ("two one", 2)
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "two one"
    assert server.raw("GET", f"/v1/responses/{last['id']}").json() == last


def test_thoughts_and_calls_stream_in_order(
    server: Server, client: openai.OpenAI, engine: EngineServer
) -> None:
    engine.calls, engine.thoughts = [CALL, CALL | {"id": "call_2"}], "hm"
    events = _events(server, input="one", tools=[TOOL])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        *(
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        )
        * 2,
        "completed",
    ]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(one["name"], one["arguments"], one["output_index"]) for one in done] == [
        ("look", '{"at": "x"}', 1),
        ("look", '{"at": "x"}', 2),
    ]
    thought, first, second = events[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert (first["call_id"], second["call_id"]) == ("call_1", "call_2")
    # The whole conversation goes back in, with what the tools said.
    engine.calls, engine.thoughts = [], ""
    outputs: Any = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "found"}
        for call in (first, second)
    ]
    client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "one"}, thought, first, second, *outputs]
    )
    assert engine.asked[-1]["messages"] == [
        {"role": "user", "content": "one"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [CALL, CALL | {"id": "call_2"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "found"},
        {"role": "tool", "tool_call_id": "call_2", "content": "found"},
    ]


def test_the_clients_own_stream_helper_reads_it(client: openai.OpenAI, engine: EngineServer) -> None:
    with client.responses.stream(model=MODEL, input="one two") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_text == "two one"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_is_incomplete(server: Server, engine: EngineServer, stream: bool) -> None:
    engine.says = "x " * 40
    asked = {"input": "one", "max_output_tokens": 16}
    if stream:
        last = _events(server, **asked)[-1]
        assert last["type"] == "response.incomplete"
        made = last["response"]
    else:
        made = server.raw("POST", "/v1/responses", json={"model": MODEL, **asked}).json()
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (made["output"][0]["status"], made["completed_at"]) == ("incomplete", None)


def test_an_engine_that_fails_under_way(server: Server, client: openai.OpenAI, engine: EngineServer) -> None:
    engine.breaks = (2, {"error": {"message": "out of memory"}})
    last = _events(server, input="one two")[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "out of memory" in last["response"]["error"]["message"]
    assert client.responses.retrieve(last["response"]["id"]).status == "failed"
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.responses.create(model=MODEL, input="one two")
    engine.refusal = (400, {"error": {"message": "too long", "param": "messages"}})
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="too long"):
            client.responses.create(model=MODEL, input="one two", stream=stream)


def test_an_answer_that_cannot_be_kept(
    server: Server, engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("", {}, Exception("disk is full"))

    monkeypatch.setattr(responses, "store", full)
    last = _events(server, input="one two")[-1]
    assert (last["type"], last["code"], last["param"]) == ("error", None, None)
    assert "could not be stored" in last["message"]


def test_a_call_that_broke_off_was_never_made(
    server: Server, client: openai.OpenAI, engine: EngineServer
) -> None:
    engine.calls = [CALL]
    engine.breaks = (2, {"error": {"message": "out of memory"}})
    cut = _events(server, input="one", tools=[TOOL])[-1]["response"]
    assert [(item["type"], item["status"]) for item in cut["output"]] == [("function_call", "incomplete")]
    engine.calls, engine.breaks = [], None
    client.responses.create(model=MODEL, input="two", previous_response_id=cut["id"])
    assert engine.asked[-1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "user", "content": "two"},
    ]


def test_without_an_engine_the_web_stays_up(client: openai.OpenAI, server: Server) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as refused:
            client.responses.create(model=MODEL, input="one", stream=stream)
        assert refused.value.status_code == 503
    assert client.models.retrieve(MODEL).id == MODEL


@BOTH
def test_a_conversation_goes_on_from_a_response(
    client: openai.OpenAI, server: Server, engine: EngineServer
) -> None:
    first = client.responses.create(model=MODEL, input="one two", instructions="Be short.")
    second = client.responses.create(model=MODEL, input="three four", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    third = client.responses.create(model=MODEL, input="five", previous_response_id=second.id)
    assert engine.asked[-1]["messages"] == [
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "two one"},
        {"role": "user", "content": "three four"},
        {"role": "assistant", "content": "four three"},
        {"role": "user", "content": "five"},
    ]
    _, key = server.new_key("other")
    other = client.with_options(api_key=key)
    client.responses.delete(first.id)
    for caller, previous in ((other, second.id), (client, third.id), (client, "resp_none")):
        with pytest.raises(openai.BadRequestError) as refused:
            caller.responses.create(model=MODEL, input="six", previous_response_id=previous)
        assert (refused.value.code, refused.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )


@BOTH
def test_kept_responses(client: openai.OpenAI, server: Server, engine: EngineServer) -> None:
    asked: Any = [
        {"role": "developer", "content": "Be short."},
        {"type": "message", "role": "user", "content": "one"},
    ]
    kept = client.responses.create(model=MODEL, input=asked)
    assert client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    forgotten = client.responses.create(model=MODEL, input="one", store=False)
    items = list(client.responses.input_items.list(kept.id, limit=1))
    assert [item.to_dict()["content"] for item in items] == [
        [{"type": "input_text", "text": "one"}],
        [{"type": "input_text", "text": "Be short."}],
    ]
    ascending = client.responses.input_items.list(kept.id, order="asc")
    assert [item.id for item in ascending] == [item.id for item in reversed(items)]
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(kept.id)
    _, key = server.new_key("other")
    other = client.with_options(api_key=key)
    for caller, one in ((client, forgotten.id), (other, kept.id)):
        for call in (
            caller.responses.retrieve,
            caller.responses.delete,
            caller.responses.cancel,
            caller.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                call(one)
    gone = server.raw("DELETE", f"/v1/responses/{kept.id}").json()
    assert gone == {"id": kept.id, "object": "response.deleted", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)


def test_tokens_are_counted(client: openai.OpenAI, engine: EngineServer) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="one two three", instructions="four")
    assert (counted.input_tokens, counted.object) == (4, "response.input_tokens")
    assert engine.asked[0]["max_completion_tokens"] == 1


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": 3}, "input", "invalid_type"),
    ({"input": [{"content": "x"}]}, "input[0].type", "missing_required_parameter"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_value"),
    ({"input": [{"type": ["message"]}]}, "input[0].type", "unsupported_value"),
    ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "invalid_value"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].type",
        "unsupported_value",
    ),
    ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0].name", "missing_required_parameter"),
    ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
    ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "no"}}, "tool_choice", "invalid_value"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    (
        {"text": {"format": {"type": "json_schema", "name": "a"}}},
        "text.format.schema",
        "missing_required_parameter",
    ),
    ({"background": True, "stream": True}, "stream", "unsupported_value"),
    ({"background": True, "store": False}, "store", "invalid_value"),
    ({"truncation": "auto"}, "truncation", "unsupported_value"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_value"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
    ({"stream_options": {}}, "stream_options", "invalid_value"),
    ({"messages": []}, "messages", "unknown_parameter"),
]


@pytest.mark.parametrize(("wrong", "param", "code"), WRONG, ids=[param for _, param, _ in WRONG])
def test_a_wrong_parameter_is_named(server: Server, wrong: dict[str, Any], param: str, code: str) -> None:
    answer = server.raw("POST", "/v1/responses", json={"model": MODEL, "input": "one"} | wrong)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_who_leaves_ends_the_engines_work(server: Server, engine: EngineServer) -> None:
    engine.delay = 60.0
    headers = {"authorization": f"Bearer {server.key}"}
    body = {"model": MODEL, "input": "one"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/responses", json=body, headers=headers, timeout=0.5, trust_env=False)
    wait_until(engine.left.is_set)

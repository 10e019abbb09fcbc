"""Chat completions through the official client, answered by a foreign engine: whole, streamed, stored."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app.services import jobs, models
from tests.app.api.server import BOTH, MODEL, Server, wait_until
from tests.engine import EngineServer, engine_running

TUNED = f"ft:{MODEL}:personal::AbCd1234"
MESSAGES: Any = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "one two three"}]
# As training has it too.
TOLD = [{"role": "system", "content": "Be short."}, MESSAGES[1]]
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


@pytest.fixture
def engine(server: Server) -> Iterator[EngineServer]:
    """An engine for the base model and what is tuned from it."""
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        yield engine


def _tune(server: Server, job_id: str, model_id: str = TUNED, kind: str = "tuned") -> Path:
    uri = f"jobs/{job_id}/model.tok-1"
    with server.context.storage.writing_directory(uri) as folder:
        (folder / "adapter_config.json").write_text("{}")
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=model_id, kind=kind, uri=uri, details={})
    return server.context.storage.path(uri)


def test_a_completion_has_every_key(client: openai.OpenAI, engine: EngineServer) -> None:
    made = client.chat.completions.create(model=MODEL, messages=MESSAGES).to_dict()
    assert made["id"].startswith("chatcmpl-")
    assert made["created"] > 0
    assert made["system_fingerprint"].startswith("fp_")
    assert {key: made[key] for key in ("object", "model", "service_tier")} == {
        "object": "chat.completion",
        "model": MODEL,
        "service_tier": "default",
    }
    assert made["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "three two one",
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert made["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert engine.asked == [{"model": "vendor/base", "temperature": 1.0, "top_p": 1.0, "messages": TOLD}]


def test_every_parameter_reaches_the_engine(client: openai.OpenAI, engine: EngineServer) -> None:
    schema = {"name": "a", "schema": {"type": "object"}, "strict": True}
    sent: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "stop": ["x", "y"],
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 1,
        "logit_bias": {"50": -100.0},
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    }
    unsaid = {"user": "u", "safety_identifier": "s", "service_tier": "flex", "verbosity": "low"}
    unsaid |= {"metadata": {"a": "b"}, "prompt_cache_key": "k", "modalities": ["text"]}
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=2, **sent, **unsaid
    ).to_dict()
    assert engine.asked == [{"model": "vendor/base", "messages": TOLD, "max_completion_tokens": 2, **sent}]
    assert [choice["finish_reason"] for choice in made["choices"]] == ["length", "length"]
    first = made["choices"][1]["logprobs"]["content"][0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("three", -0.25, list(b"three"))
    assert first["top_logprobs"] == [{"token": "x", "logprob": -9999.0, "bytes": [120]}]


def test_tools_and_thoughts(client: openai.OpenAI, engine: EngineServer) -> None:
    engine.calls, engine.thoughts = [CALL], "hm"
    asked: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "tools": [TOOL]}
    message = client.chat.completions.create(**asked).choices[0].message.to_dict()
    assert message == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "reasoning_content": "hm",
        "tool_calls": [CALL],
    }
    deltas = [c.choices[0].delta.to_dict() for c in client.chat.completions.create(**asked, stream=True)]
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "hm"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ': "x"}'}}]},
        {},
    ]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]}
    other = {"type": "function", "function": {"name": "other"}}
    client.chat.completions.create(
        **asked | {"tools": [TOOL, other], "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    )
    assert (engine.asked[-1]["tools"], engine.asked[-1]["tool_choice"]) == ([TOOL], "required")
    # A whole conversation with tools goes back in.
    answered = {"role": "tool", "tool_call_id": "call_1", "content": "found it"}
    client.chat.completions.create(**asked | {"messages": [*MESSAGES, message, answered]})
    assert engine.asked[-1]["messages"][-2]["tool_calls"] == [CALL]


def test_a_stream_is_openais(server: Server, engine: EngineServer) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "n": 2}
    answer = server.raw("POST", "/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("data: [DONE]\n\n")
    lines = answer.text.removesuffix("data: [DONE]\n\n").strip().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in c for c in chunks)
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert [one["delta"].get("content") for one in mine[1:-1]] == ["three", " two", " one"]
        assert (mine[-1]["delta"], mine[-1]["finish_reason"]) == ({}, "stop")
        assert {one["finish_reason"] for one in mine[:-1]} == {None}


def test_a_stream_tells_its_usage_when_asked(client: openai.OpenAI, engine: EngineServer) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, logprobs=True
        )
    )
    *rest, last = chunks
    assert all(chunk.to_dict()["usage"] is None for chunk in rest)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 8
    said = [c.choices[0].logprobs for c in rest if c.choices[0].logprobs is not None]
    assert [one.content[0].token for one in said if one.content] == ["three", " two", " one"]


def test_a_tuned_model_is_loaded_under_a_name_of_its_own(
    client: openai.OpenAI, server: Server, engine: EngineServer, job_id: str
) -> None:
    folder = _tune(server, job_id)
    for _ in range(2):
        made = client.chat.completions.create(model=TUNED, messages=MESSAGES)
        assert made.model == TUNED
    [(name, path)] = engine.adapters.items()
    assert path == str(folder)
    assert {asked["model"] for asked in engine.asked} == {name}
    engine.adapters.clear()  # it was started anew
    assert client.chat.completions.create(model=TUNED, messages=MESSAGES).model == TUNED
    # A paused job's checkpoint is a model like any other.
    checkpoint = f"{TUNED}:ckpt-step-2"
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        uri = f"jobs/{job_id}/checkpoints/step-2"
        models.add_tuned(session, job=job, model_id=checkpoint, kind="checkpoint", uri=uri, details={})
    server.context.storage.path(uri).mkdir(parents=True)
    assert client.chat.completions.create(model=checkpoint, messages=MESSAGES).model == checkpoint
    assert len(engine.adapters) == 2


def test_models_of_others_do_not_exist(
    client: openai.OpenAI, server: Server, engine: EngineServer, job_id: str
) -> None:
    _tune(server, job_id)
    other_id, key = server.new_key("other")
    other = client.with_options(api_key=key)
    for name in (TUNED, "nobody"):
        with pytest.raises(openai.NotFoundError) as refused:
            other.chat.completions.create(model=name, messages=MESSAGES)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert engine.asked == []
    client.fine_tuning.checkpoints.permissions.create(TUNED, project_ids=[other_id])
    assert other.chat.completions.create(model=TUNED, messages=MESSAGES).model == TUNED


def test_a_stopped_model_names_the_cure(
    client: openai.OpenAI, server: Server, engine: EngineServer, job_id: str
) -> None:
    _tune(server, job_id)
    with server.context.db.transaction() as session:
        models.stop_model(session, project_id=server.project_id, model_id=TUNED)
    with pytest.raises(openai.InternalServerError, match=r"\*Load\*") as refused:
        client.with_options(max_retries=2).chat.completions.create(model=TUNED, messages=MESSAGES)
    assert (refused.value.status_code, refused.value.code) == (503, "model_stopped")
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert engine.asked == []


def test_without_an_engine_the_web_stays_up(client: openai.OpenAI, server: Server) -> None:
    """Nothing is named in providers.toml, and our own inference process does not run."""
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="inference process") as refused:
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
        error = refused.value
        assert (error.status_code, error.type) == (503, "server_error")
        assert int(error.response.headers["retry-after"]) > 0
        assert "x-should-retry" not in error.response.headers
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("refusal", "headers", "status", "told"),
    [
        ((400, {"error": {"message": "too long", "param": "messages"}}), {}, 400, "too long"),
        ((422, {"message": "odd"}), {}, 400, "odd"),
        ((429, {"error": {"message": "full", "code": "x"}}), {"retry-after": "3"}, 429, "full"),
        ((500, b"<html>"), {}, 503, "foreign"),
        ((503, {"error": {"message": "loading"}}), {"retry-after": "9"}, 503, "loading"),
        ((401, {"error": "bad key"}), {}, 503, "bad key"),
        ((200, b"[]"), {}, 503, "can't be read"),
        ((200, {"choices": []}), {}, 503, "can't be read"),
        ((200, {"choices": [{"message": {"content": 1, "tool_calls": [3]}}]}), {}, 503, "can't be read"),
    ],
)
def test_what_an_engine_refuses(
    server: Server, engine: EngineServer, refusal: Any, headers: dict[str, str], status: int, told: str
) -> None:
    engine.refusal, engine.headers = refusal, headers
    answer = server.raw("POST", "/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert told in error["message"]
    if headers:
        assert answer.headers["retry-after"] == headers["retry-after"]


@pytest.mark.parametrize(
    "broken", [{"error": {"message": "out of memory"}}, b"data: {\n\n", b"", b'data: {"choices": [1]}\n\n']
)
def test_a_stream_that_breaks_says_so(client: openai.OpenAI, engine: EngineServer, broken: Any) -> None:
    engine.breaks = (2, broken)
    said = ""
    with pytest.raises(openai.APIError, match="foreign"):
        for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == "three"


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_engines_work(server: Server, engine: EngineServer, stream: bool) -> None:
    engine.says = "x " * 20_000
    engine.delay, engine.pause = (0.0, 0.01) if stream else (60.0, 0.0)
    body = {"model": MODEL, "messages": MESSAGES, "stream": stream}
    headers = {"authorization": f"Bearer {server.key}"}
    if stream:
        with (
            httpx.Client(trust_env=False) as http,
            http.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=headers) as answer,
        ):
            assert next(answer.iter_lines()).startswith("data:")
        wait_until(engine.left.is_set)
        return
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=0.5, trust_env=False
        )
    wait_until(engine.left.is_set)


@BOTH
def test_stored_completions(client: openai.OpenAI, server: Server, engine: EngineServer) -> None:
    create = client.chat.completions.create
    first = create(model=MODEL, messages=MESSAGES, store=True, metadata={"k": "v"}, user="me", tools=[TOOL])
    assert create(model=MODEL, messages=MESSAGES, metadata={"k": "v"}).id != first.id
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "four "}, {"type": "text", "text": "five"}]}
    ]
    chunks = list(create(model=MODEL, messages=parts, store=True, stream=True))  # type: ignore[call-overload]
    second = chunks[0].id

    stored = client.chat.completions.retrieve(first.id).to_dict()
    assert stored | first.to_dict() == stored
    assert stored["request_id"] == first._request_id
    assert (stored["metadata"], stored["input_user"], stored["tools"]) == ({"k": "v"}, "me", [TOOL])
    echo = ("tool_choice", "seed", "top_p", "temperature", "presence_penalty", "frequency_penalty")
    assert [stored[key] for key in echo] == ["auto", None, 1.0, 1.0, 0.0, 0.0]
    assert client.chat.completions.retrieve(second).choices[0].message.content == "five four"

    def listed(**given: Any) -> list[str]:
        return [one.id for one in client.chat.completions.list(**given)]

    assert listed() == [first.id, second]
    assert listed(order="desc", limit=1) == [second, first.id]
    assert listed(metadata={"k": "v"}) == [first.id]
    assert listed(metadata={"k": "w"}) == listed(model="other") == []
    assert listed(model=MODEL, after=first.id) == [second]
    page = server.raw("GET", "/v1/chat/completions?limit=1").json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (first.id, first.id, True)

    client.chat.completions.update(first.id, metadata={"k": "new"})
    assert listed(metadata={"k": "new"}) == [first.id]
    client.chat.completions.update(second, metadata={"k": "new"})
    # A list goes on where a row is relabelled on the way.
    for one in client.chat.completions.list(metadata={"k": "new"}, limit=1):
        client.chat.completions.update(one.id, metadata={"k": "newer"})
    assert listed(metadata={"k": "newer"}) == [first.id, second]
    assert client.chat.completions.update(first.id, metadata=None).to_dict()["metadata"] == {}
    asked = server.raw("GET", f"/v1/chat/completions/{first.id}/messages").json()
    assert asked["data"][1] == {
        "id": f"{first.id}-1",
        "role": "user",
        "content": "one two three",
        "name": None,
        "content_parts": None,
    }
    assert [one.id for one in client.chat.completions.messages.list(first.id, limit=1, order="desc")] == [
        f"{first.id}-1",
        f"{first.id}-0",
    ]
    [only] = client.chat.completions.messages.list(second)
    assert (only.content, only.to_dict()["content_parts"]) == ("four five", parts[0]["content"])

    gone = client.chat.completions.delete(first.id)
    assert (gone.id, gone.object, gone.deleted) == (first.id, "chat.completion.deleted", True)
    _, key = server.new_key("other")
    for caller, one in ((client, first.id), (client.with_options(api_key=key), second)):
        for call in (caller.chat.completions.retrieve, caller.chat.completions.delete):
            with pytest.raises(openai.NotFoundError):
                call(one)
        with pytest.raises(openai.NotFoundError):
            caller.chat.completions.update(one, metadata={})


def test_what_was_not_stored_is_not_there(client: openai.OpenAI, engine: EngineServer) -> None:
    made = client.chat.completions.create(model=MODEL, messages=MESSAGES, metadata={"a": "b"})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)
    engine.breaks = (2, b"")
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, store=True))
    assert client.chat.completions.list().data == []


def test_text_no_database_takes_is_mended(client: openai.OpenAI, engine: EngineServer) -> None:
    engine.says = "a\0b \ud800c"
    made = client.chat.completions.create(model=MODEL, messages=MESSAGES, store=True)
    assert made.choices[0].message.content == "a�b ?c"
    assert client.chat.completions.retrieve(made.id).choices[0].message.content == "a�b ?c"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y", "unknown_parameter"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}]},
        "messages[0].tool_calls[0].function",
        "missing_required_parameter",
    ),
    ({"model": 3}, "model", "invalid_type"),
    ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_parameter_combination"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        "missing_required_parameter",
    ),
    ({"tools": [{"type": "custom"}]}, "tools[0].type", "unsupported_value"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}},
        "tool_choice",
        "invalid_value",
    ),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    ({"functions": []}, "functions", "unsupported_value"),
    ({"audio": {}}, "audio", "unsupported_value"),
    ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
    ({"stream_options": {}}, "stream_options", "invalid_value"),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"top_k": 3}, "top_k", "unknown_parameter"),
]


@pytest.mark.parametrize(("wrong", "param", "code"), WRONG, ids=[param for _, param, _ in WRONG])
def test_a_wrong_parameter_is_named(server: Server, wrong: dict[str, Any], param: str, code: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES} | wrong
    answer = server.raw("POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_a_key_without_the_scope_may_not(client: openai.OpenAI, server: Server) -> None:
    from app.core.tables import ApiKey

    with server.context.db.transaction() as session:
        for key in session.query(ApiKey).filter(ApiKey.project_id == server.project_id):
            key.scopes = ["files:read"]
    with pytest.raises(openai.PermissionDeniedError, match="models:use"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES)

"""Chat completions of the inference process, over its socket, held against the engine and transformers."""

import json
import threading
import time
from typing import Any

import pytest
import torch

from tests.worker.engine.conftest import plain_logprobs
from tests.worker.serving.conftest import TUNED, Served
from worker.engine.policy import Policy
from worker.engine.types import Prompt
from worker.serving.spelling import Spelling

MODELS = ("tiny", *TUNED)


def chunks(served: Served, **body: Any) -> list[dict[str, Any]]:
    """Return a stream's chunks, which must end as OpenAI's do."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": True, **body}
    with served.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@torch.no_grad()
def greedy(policy: Policy, text: str, most: int) -> str:
    """Return what transformers generates with an adapter merged in, by its own attention and cache."""
    prompt = torch.tensor([policy.encode_chat([{"role": "user", "content": text}])])
    causal = policy._causal
    causal.set_attn_implementation("eager")
    out = causal.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=most, do_sample=False
    )
    causal.set_attn_implementation("tunesmith")
    return policy.decode(out[0, prompt.shape[1] :].tolist())


@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_those_of_transformers(served: Served, model: str) -> None:
    policy = served.policy("tiny", None if model == "tiny" else model)
    for text in ("a", "what now", "12 " * 40):
        asked = served.chat(text, model, temperature=0, max_tokens=60)
        assert asked["choices"][0]["message"]["content"] == greedy(policy, text, 60)
        assert asked["model"] == model


def test_three_models_in_one_batch_answer_as_each_does_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {
        (model, n): served.text("b " * n, model, seed=n, max_tokens=40) for model in MODELS for n in (1, 30)
    }
    assert len(set(alone.values())) == 6
    found: dict[tuple[str, int], str] = {}
    batch = served.house._bases["tiny"].batch
    step = batch._decoder.step
    together: list[tuple[int, set[int]]] = []

    def watched() -> Any:
        rows = batch._decoder.rows
        names = {batch._choices[id(row)][0].adapter for row in rows}
        together.append((len(names), {len(row.tokens) for row in rows}))
        time.sleep(0.005)  # so that who is asked later comes while the others speak
        return step()

    monkeypatch.setattr(batch._decoder, "step", watched)

    def ask(model: str, n: int) -> None:
        found[model, n] = served.text("b " * n, model, seed=n, max_tokens=40)

    threads = [threading.Thread(target=ask, args=one) for one in alone]
    for count, thread in enumerate(threads):
        thread.start()
        end = time.monotonic() + 30
        while len(together) < 4 * count and time.monotonic() < end:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert found == alone
    # All three in one step, at different places of their answers.
    assert any(names == 3 and len(places) > 1 for names, places in together)


def test_logprobs_are_the_model_s_own(served: Served) -> None:
    policy = served.policy("tiny", TUNED[0])
    answer = served.chat("a", TUNED[0], seed=3, max_tokens=12, logprobs=True, top_logprobs=3)
    (choice,) = answer["choices"]
    told = choice["logprobs"]["content"]
    said = b"".join(bytes(one["bytes"]) for one in told)
    assert said.decode("utf-8", "replace") == choice["message"]["content"]
    prompt = Prompt(0, policy.encode_chat([{"role": "user", "content": "a"}]))
    spelling = Spelling(policy.tokenizer)
    token_of = {spelling.spell(token): token for token in range(policy.vocabulary)}
    tokens = tuple(token_of[bytes(one["bytes"])] for one in told)
    own = plain_logprobs(policy, prompt, tokens).detach()
    torch.testing.assert_close(torch.tensor([one["logprob"] for one in told]), own, atol=1e-4, rtol=0)
    for one in told:
        others = one["top_logprobs"]
        assert len(others) == 3
        assert [other["logprob"] for other in others] == sorted(
            (other["logprob"] for other in others), reverse=True
        )


def test_one_seed_one_text_and_another_seed_another(served: Served) -> None:
    first = served.chat(seed=5, n=3, max_tokens=30)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    again = served.chat(seed=5, n=3, max_tokens=30)
    assert [choice["message"]["content"] for choice in again["choices"]] == texts
    assert served.text(seed=5, max_tokens=30) == texts[0]
    assert served.text(seed=6, max_tokens=30) != texts[0]
    assert served.text(max_tokens=30) != served.text(max_tokens=30)


def test_more_choices_than_rows_are_all_answered(served: Served) -> None:
    answer = served.chat(n=20, seed=1, max_tokens=4)
    assert [choice["index"] for choice in answer["choices"]] == list(range(20))
    assert answer["usage"]["completion_tokens"] <= 80


def test_a_stream_says_what_the_whole_answer_says(served: Served) -> None:
    body = {"seed": 4, "n": 2, "max_tokens": 25, "logprobs": True, "top_logprobs": 1}
    whole = served.chat(**body)
    found = chunks(served, **body, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in found}) == 1
    assert all(chunk["usage"] is None for chunk in found[:-1])
    assert found[-1]["choices"] == []
    usage = found[-1]["usage"]
    # The second time the prompt had been read before.
    assert {**usage, "prompt_tokens_details": None} == {**whole["usage"], "prompt_tokens_details": None}
    for index in range(2):
        own = [chunk["choices"][0] for chunk in found[:-1] if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        text = "".join(choice["delta"].get("content") or "" for choice in own)
        assert text == whole["choices"][index]["message"]["content"]
        told = [one for choice in own for one in (choice["logprobs"] or {"content": []})["content"]]
        assert told == whole["choices"][index]["logprobs"]["content"]
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == [
            whole["choices"][index]["finish_reason"]
        ]


def test_a_stop_string_ends_the_answer_before_it(served: Served) -> None:
    text = served.text(seed=9, max_tokens=60)
    stop = text[10:13]
    answer = served.chat(seed=9, max_tokens=60, stop=[stop, "never said"])
    assert answer["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 60
    streamed = chunks(served, seed=9, max_tokens=60, stop=stop)
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in streamed)
    assert said == text[: text.index(stop)]


def test_the_shared_beginning_of_a_prompt_is_read_once(served: Served) -> None:
    system = {"role": "system", "content": "You answer in one word, whatever you are asked. " * 5}
    usages = []
    for text in ("first", "second"):
        body = {"model": "tiny", "messages": [system, {"role": "user", "content": text}], "max_tokens": 3}
        usages.append(served.post("/v1/chat/completions", body).json()["usage"])
    assert usages[0]["prompt_tokens_details"]["cached_tokens"] < 20
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] > 200
    # The same text through other weights is another matter.
    body = {"model": TUNED[1], "messages": [system, {"role": "user", "content": "x"}], "max_tokens": 3}
    usage = served.post("/v1/chat/completions", body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_schema_and_a_json_object_are_kept_to(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"team": {"enum": ["red", "blue"]}, "n": {"type": "integer"}},
        "required": ["team", "n"],
        "additionalProperties": False,
    }
    strict = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    answer = json.loads(served.text(response_format=strict, seed=1, max_tokens=200))
    assert answer["team"] in ("red", "blue")
    assert isinstance(answer["n"], int)
    fixed = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": {"a": 1}}}}
    whole = served.chat(response_format=fixed)
    assert whole["choices"][0]["message"]["content"] == '{"a": 1}'
    assert whole["choices"][0]["finish_reason"] == "stop"
    started = served.text(response_format={"type": "json_object"}, seed=1, max_tokens=5)
    assert started.startswith("{")


def test_a_tool_that_must_be_called_is(served: Served) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "time", "parameters": parameters}},
    ]
    body = {"model": "thinker", "tools": tools, "reasoning_effort": "none", "max_tokens": 60, "seed": 2}
    answer = served.chat(**body, tool_choice="required")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] in ("weather", "time")
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    named = served.chat(**body, tool_choice={"type": "function", "function": {"name": "time"}})
    assert named["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "time"
    streamed = chunks(served, **body, tool_choice="required")
    calls = [one["choices"][0]["delta"].get("tool_calls") for one in streamed]
    (said,) = [call for call in calls if call]
    assert said[0]["function"] == call["function"]
    assert (
        "tools"
        in served.post(
            "/v1/chat/completions",
            {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": tools},
        ).json()["error"]["message"]
    )


def test_a_thought_is_told_apart_and_counted(served: Served) -> None:
    answer = served.chat(model="thinker", seed=1, max_tokens=20)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    plain = served.chat(model="thinker", seed=1, max_tokens=20, reasoning_effort="none")
    assert plain["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert "reasoning_content" not in plain["choices"][0]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages[0]"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "a"}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logit_bias": {"900000": 1}}, "logit_bias"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, None),
        ({"messages": [{"role": "user", "content": "long " * 5000}]}, "messages"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_names_it(served: Served, change: Any, param: str | None) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **change}
    answer = served.post("/v1/chat/completions", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


def test_a_model_that_is_not_there_is_a_404_and_no_json_a_400(served: Served) -> None:
    body = {"model": "gone", "messages": [{"role": "user", "content": "a"}]}
    answer = served.post("/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert served.client.post("/v1/chat/completions", content=b"{").status_code == 400

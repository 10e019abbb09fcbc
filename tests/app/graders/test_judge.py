"""Judges over real HTTP: what they are sent, how a reply is read, whose fault a failure is, what is paid."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.graders.grade import grade
from app.graders.judge import Judges
from app.graders.means import Means
from app.graders.result import Grade
from app.graders.spec import parse_grader
from tests.judge import JudgeServer, judging, says, scores

TOKENS = {"prompt_tokens": 190, "completion_tokens": 134, "total_tokens": 324, "cached_tokens": 64}
SCORE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "gpt-judge",
    "input": [
        {"role": "system", "content": "Compare with {{item.answer}}."},
        {"role": "user", "content": "The answer: {{sample.output_text}}"},
    ],
}
LABEL: dict[str, Any] = {
    "type": "label_model",
    "name": "tone",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    "labels": ["kind", "rude", "neither"],
    "passing_labels": ["kind", "neither"],
}


def _run(judges: Judges, grader: dict[str, Any] = SCORE, text: str = "Paris") -> Grade:
    return grade(
        parse_grader(grader),
        item={"answer": "Paris"},
        output_text=text,
        json_expected=False,
        means=Means(judges=judges),
    )


def _flags(done: Grade) -> list[str]:
    return [key for key, value in done.errors.to_dict().items() if value is True]


def test_a_score_and_what_it_took(server: JudgeServer, judges: Judges) -> None:
    done = _run(judges)
    assert (done.reward, done.fault, done.message) == (0.75, "none", None)
    assert done.usage == {"judge-8b": TOKENS}
    assert done.sampled_model == "judge-8b"
    (asked,) = server.asked
    assert (asked["path"], asked["model"]) == ("/v1/chat/completions", "judge-8b")
    assert server.keys == [None]
    schema = asked["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["steps", "result"]
    assert schema["schema"]["properties"]["result"] == {"type": "number"}


def test_sampling_params_reach_the_judge(server: JudgeServer, judges: Judges) -> None:
    sampling = {"seed": 7, "top_p": 0.5, "temperature": 0.2, "max_completion_tokens": 99}
    _run(judges, SCORE | {"sampling_params": sampling | {"reasoning_effort": "low"}})
    assert {key: server.asked[0][key] for key in (*sampling, "reasoning_effort")} == sampling | {
        "reasoning_effort": "low"
    }


@pytest.mark.parametrize(
    ("result", "range_", "reward"),
    [
        (0.4, None, 0.4),
        (7, None, 1.0),
        (-3.5, None, 0.0),
        (7, [1, 10], 7.0),
        (0, [1, 10], 1.0),
        (1, None, 1.0),
    ],
)
def test_a_score_is_clamped_to_its_range(
    server: JudgeServer, judges: Judges, result: float, range_: list[float] | None, reward: float
) -> None:
    server.answers = [(200, scores(result))]
    assert _run(judges, SCORE | ({"range": range_} if range_ else {})).reward == reward
    low, high = range_ or (0, 1)
    assert f"from {low} (worst) to {high} (best)" in server.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(("label", "reward"), [("kind", 1.0), ("neither", 1.0), ("rude", 0.0)])
def test_labels(server: JudgeServer, judges: Judges, label: str, reward: float) -> None:
    server.answers = [(200, scores(label))]
    assert _run(judges, LABEL).reward == reward
    result = server.asked[0]["response_format"]["json_schema"]["schema"]["properties"]["result"]
    assert result == {"type": "string", "enum": ["kind", "rude", "neither"]}


@pytest.mark.parametrize("structured", ["json_object", "none"])
def test_servers_that_know_no_schemas(server: JudgeServer, tmp_path: Path, structured: str) -> None:
    server.write_providers(tmp_path, structured_output=structured, token_limit_key="max_tokens")
    server.answers = [(200, says('```json\n{"steps": [], "result": 0.5}\n```'))]
    judges = Judges.of(tmp_path)
    done = _run(judges, SCORE | {"sampling_params": {"max_completions_tokens": 5}})
    judges.close()
    assert done.reward == 0.5
    formats = {"json_object": {"type": "json_object"}, "none": None}
    assert server.asked[0].get("response_format") == formats[structured]
    assert server.asked[0]["max_tokens"] == 5


REFUSAL, PARSE, SERVER = (
    "model_grader_refusal_error",
    "model_grader_parse_error",
    "model_grader_server_error",
)


@pytest.mark.parametrize(
    ("grader", "status", "answer", "flag", "fault", "times"),
    [
        (SCORE, 200, says(None, refusal="I can't."), REFUSAL, "grader", 1),
        (SCORE, 200, says("", ending="content_filter"), REFUSAL, "grader", 1),
        (SCORE, 200, says('{"steps": [', ending="length"), PARSE, "grader", 1),
        (SCORE, 200, says("I'd say 0.9"), PARSE, "grader", 1),
        (SCORE, 200, says(None), PARSE, "grader", 1),
        (SCORE, 200, says('{"result": NaN}'), PARSE, "grader", 1),
        (SCORE, 200, scores("0.9"), PARSE, "grader", 1),
        (SCORE, 200, scores(True), PARSE, "grader", 1),
        (SCORE, 200, scores(None), PARSE, "grader", 1),
        (SCORE, 200, says("[0.9]"), PARSE, "grader", 1),
        (LABEL, 200, scores("Kind"), PARSE, "grader", 1),
        (LABEL, 200, scores(["kind"]), PARSE, "grader", 1),
        (SCORE, 400, {"error": {"message": "context too long"}}, SERVER, "grader", 1),
        (SCORE, 401, {"error": {"message": "bad key"}}, SERVER, "infrastructure", 1),
        (SCORE, 404, b"no such model", SERVER, "infrastructure", 1),
        (SCORE, 429, {"error": {"message": "slow down"}}, SERVER, "infrastructure", 4),
        (SCORE, 500, b"<html>", SERVER, "infrastructure", 4),
        (SCORE, 503, b"", SERVER, "infrastructure", 4),
        (SCORE, 200, b"<html>", SERVER, "infrastructure", 4),
        (SCORE, 200, {"choices": []}, SERVER, "infrastructure", 4),
        (SCORE, 200, [], SERVER, "infrastructure", 4),
    ],
)
def test_failures_are_told_apart_and_none_is_a_zero(
    server: JudgeServer,
    judges: Judges,
    grader: dict[str, Any],
    status: int,
    answer: Any,
    flag: str,
    fault: str,
    times: int,
) -> None:
    server.answers = [(status, answer)]
    done = _run(judges, grader)
    assert (done.reward, done.fault, _flags(done)) == (None, fault, [flag])
    assert len(server.asked) == times
    assert done.message
    details = done.errors.model_grader_server_error_details
    assert (details is not None) == (flag == SERVER)
    # What was answered was paid for, whatever it was worth.
    assert done.usage == ({"judge-8b": TOKENS} if flag != SERVER else {})


def test_a_judge_that_comes_back_in_time_is_heard(server: JudgeServer, judges: Judges) -> None:
    server.answers = [(503, b""), (429, b""), (200, b"{"), (200, scores(0.5))]
    assert _run(judges).reward == 0.5
    assert len(server.asked) == 4


def test_a_judge_is_not_asked_before_it_wants_to_be(server: JudgeServer, judges: Judges) -> None:
    server.answers, server.headers = [(429, b""), (200, scores(0.5))], {"retry-after": "1"}
    started = time.monotonic()
    assert _run(judges).reward == 0.5
    assert time.monotonic() - started >= 1


def test_requests_keep_the_pace_of_the_provider(server: JudgeServer, tmp_path: Path) -> None:
    server.write_providers(tmp_path, requests_per_minute=1_200)
    judges = Judges.of(tmp_path)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _run(judges, text=str(n)), range(5)))
    judges.close()
    assert time.monotonic() - started >= 4 * 0.05


def test_a_judge_nobody_listens_for(tmp_path: Path) -> None:
    with judging() as server:
        server.write_providers(tmp_path, attempts=2)
    judges = Judges.of(tmp_path)
    done = _run(judges)
    judges.close()
    assert (done.reward, done.fault, _flags(done)) == (None, "infrastructure", [SERVER])
    assert "2 tries" in str(done.message)


def test_a_model_without_provider_and_a_process_without_judges(server: JudgeServer, judges: Judges) -> None:
    done = _run(judges, SCORE | {"model": "gpt-other"})
    assert (done.fault, _flags(done)) == ("infrastructure", [SERVER])
    assert "gpt-other" in str(done.message)
    bare = grade(parse_grader(SCORE), item={"answer": ""}, output_text="", json_expected=False)
    assert (bare.reward, bare.fault, _flags(bare)) == (None, "infrastructure", [SERVER])
    assert server.asked == []


def test_the_key_is_read_from_its_variable(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.write_providers(tmp_path, key_variable="JUDGE_KEY")
    judges = Judges.of(tmp_path)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    unset = _run(judges)
    assert (unset.fault, server.asked) == ("infrastructure", [])
    assert "JUDGE_KEY" in str(unset.message)
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    assert _run(judges).reward == 0.75
    assert server.keys == ["Bearer sk-secret"]
    judges.close()


def test_an_identical_judgement_is_paid_once(server: JudgeServer, tmp_path: Path) -> None:
    for turn in range(2):
        judges = Judges.of(tmp_path)  # another process finds it too
        done = _run(judges)
        assert done.reward == 0.75
        assert done.usage == ({"judge-8b": TOKENS} if turn == 0 else {})
        judges.close()
    assert len(server.asked) == 1
    judges = Judges.of(tmp_path)
    _run(judges, text="Rome")
    _run(judges, SCORE | {"range": [0, 5]})
    _run(judges, SCORE | {"sampling_params": {"seed": 1}})
    judges.close()
    assert len(server.asked) == 4


def test_a_failed_judgement_is_asked_again(server: JudgeServer, judges: Judges) -> None:
    server.answers = [(200, says("hm")), (200, scores(1))]
    assert [_run(judges).reward, _run(judges).reward] == [None, 1.0]


def test_a_torn_or_forgotten_judgement_is_asked_again(server: JudgeServer, judges: Judges) -> None:
    _run(judges)
    (kept,) = judges.kept.folder.glob("*/*.json")
    kept.write_bytes(b'{"content": "{')
    assert _run(judges).reward == 0.75
    assert judges.kept.forget_old(before=0) == 0
    assert judges.kept.forget_old(before=kept.stat().st_mtime + 1) == 1
    assert _run(judges).reward == 0.75
    assert len(server.asked) == 3


def test_threads_share_a_judgement_and_the_limit_of_the_provider(server: JudgeServer, tmp_path: Path) -> None:
    server.write_providers(tmp_path, concurrency=2)
    server.delay = 0.05
    judges = Judges.of(tmp_path)
    texts = [f"answer {n % 4}" for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda text: _run(judges, text=text), texts))
    judges.close()
    assert [grade.reward for grade in done] == [0.75] * 16
    assert len(server.asked) == 4
    assert server.most_at_once <= 2
    assert sum(len(grade.usage) for grade in done) == 4


def test_a_judge_inside_a_multi_grader(server: JudgeServer, judges: Judges) -> None:
    exact = {
        "type": "string_check", "input": "{{sample.output_text}}", "reference": "Paris", "operation": "eq"
    }  # fmt: skip
    both = {"type": "multi", "graders": {"a": SCORE, "b": LABEL, "c": exact}, "calculate_output": "a * b + c"}
    server.answer_to = lambda asked: scores("kind" if "LABEL" in json.dumps(asked) else 0.5)
    done = _run(judges, both)
    assert (done.reward, done.parts) == (1.5, {"a": 0.5, "b": 1.0, "c": 1.0})
    assert done.usage == {"judge-8b": {name: 2 * count for name, count in TOKENS.items()}}


def test_the_parts_of_a_multi_grader_are_judged_side_by_side(server: JudgeServer, judges: Judges) -> None:
    """Each judgement is held back until the other one is asked for: one after another they would time out."""
    both = threading.Barrier(2)

    def answer(request: dict[str, Any]) -> Any:
        both.wait(timeout=20)
        return scores(0.5 if "first" in str(request["messages"]) else 1.0)

    server.answer_to = answer
    parts = {name: SCORE | {"input": [{"role": "user", "content": f"{name} {{{{item.answer}}}}"}]}
             for name in ("first", "second")}  # fmt: skip
    check = {
        "type": "string_check",
        "input": "{{sample.output_text}}",
        "reference": "Paris",
        "operation": "eq",
    }
    done = _run(
        judges,
        {
            "type": "multi",
            "graders": {"first": parts["first"], "same": check, "second": parts["second"]},
            "calculate_output": "first + second + same",
        },
    )
    assert (done.reward, list(done.parts.items())) == (2.5, [("first", 0.5), ("same", 1.0), ("second", 1.0)])
    assert done.usage == {"judge-8b": {name: 2 * count for name, count in TOKENS.items()}}


def test_the_limits_of_a_provider_hold_for_every_request_of_the_process(
    server: JudgeServer, tmp_path: Path
) -> None:
    """The web process makes its judges anew for each request."""
    server.write_providers(tmp_path, concurrency=1)
    server.delay = 0.05
    made = [Judges.of(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda one: _run(one[1], text=f"answer {one[0]}"), enumerate(made)))
    for judges in made:
        judges.close()
    assert [grade.reward for grade in done] == [0.75] * 4
    assert (len(server.asked), server.most_at_once) == (4, 1)


def test_two_requests_that_want_the_same_judgement_pay_once(server: JudgeServer, tmp_path: Path) -> None:
    server.write_providers(tmp_path)
    server.delay = 0.2
    made = [Judges.of(tmp_path) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(_run, made))
    for judges in made:
        judges.close()
    assert [grade.reward for grade in done] == [0.75] * 3
    assert len(server.asked) == 1

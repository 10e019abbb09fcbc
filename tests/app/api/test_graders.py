"""Graders on a running server: run and validate by the official client, saved graders, trials."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from app.core.settings import Settings
from app.services import rollouts
from tests.app.api.server import BOTH, GRADER, LINES, METHOD, MODEL, Server
from tests.app.graders.test_grade import WIRE_ERROR_KEYS
from tests.engine import engine_running
from tests.judge import JudgeServer, judging, says, scores

JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}
TOKENS = {"prompt_tokens": 190, "total_tokens": 324, "completion_tokens": 134, "cached_tokens": 64}
RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"


@pytest.fixture
def judge(settings: Settings) -> Iterator[JudgeServer]:
    """A judge that the server's data folder names."""
    with judging() as judge:
        judge.write_providers(settings.root)
        yield judge


def _run(server: Server, grader: Any, sample: str = "4", item: Any = None) -> dict[str, Any]:
    body = {"grader": grader, "model_sample": sample, "item": {"answer": "4"} if item is None else item}
    response = server.raw("POST", RUN, json=body)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def test_a_run_by_the_official_client(client: openai.OpenAI) -> None:
    done = client.fine_tuning.alpha.graders.run(
        grader=GRADER,  # type: ignore[arg-type]
        item={"answer": "4"},
        model_sample="4",
    )
    assert (done.reward, done.sub_rewards, done.api_model_grader_token_usage_per_model) == (1.0, {}, {})
    assert (done.metadata.name, done.metadata.type, done.metadata.scores) == ("exact", "string_check", {})
    assert (done.metadata.token_usage, done.metadata.sampled_model_name) == (None, None)
    assert done.metadata.errors.other_error is False
    assert done.metadata.execution_time >= 0


def test_a_validation_by_the_official_client(client: openai.OpenAI) -> None:
    lenient = {key: value for key, value in GRADER.items() if key != "name"} | {"operation": "neq"}
    checked = client.fine_tuning.alpha.graders.validate(grader=lenient)  # type: ignore[arg-type]
    assert checked.grader is not None
    assert checked.grader.to_dict() == GRADER | {"name": "string_check", "operation": "ne"}
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.alpha.graders.validate(grader=GRADER | {"operation": "is"})  # type: ignore[arg-type]
    assert (refused.value.param, refused.value.code) == ("grader.operation", "invalid_value")


def test_a_judge_counts_its_tokens_once(server: Server, judge: JudgeServer) -> None:
    done = _run(server, JUDGE)
    assert done["reward"] == 0.75
    assert done["metadata"]["token_usage"] == TOKENS
    assert done["metadata"]["sampled_model_name"] == "judge-8b"
    assert done["model_grader_token_usage_per_model"] == {"judge-8b": TOKENS}
    again = _run(server, JUDGE)
    assert again["metadata"]["token_usage"] == dict.fromkeys(TOKENS, 0)
    assert again["model_grader_token_usage_per_model"] == {}
    assert len(judge.asked) == 1


def test_a_multi_grader_has_its_parts(server: Server, judge: JudgeServer) -> None:
    both = {"type": "multi", "graders": {"a": JUDGE, "b": GRADER}, "calculate_output": "a + b"}
    done = _run(server, both)
    assert (done["reward"], done["sub_rewards"]) == (1.75, {"a": 0.75, "b": 1.0})
    assert done["metadata"]["scores"] == {"a": 0.75, "b": 1.0}
    assert (done["metadata"]["type"], done["metadata"]["token_usage"]) == ("multi", TOKENS)


@pytest.mark.parametrize(
    ("grader", "answer", "flag"),
    [
        (JUDGE, (200, says("no idea")), "model_grader_parse_error"),
        (JUDGE, (200, says(None, refusal="no")), "model_grader_refusal_error"),
        (JUDGE, (400, {}), "model_grader_server_error"),
        (GRADER | {"reference": "{{item.gone}}"}, None, "invalid_variable_error"),
        (GRADER | {"input": "{{sample.output_json.x}}"}, None, "sample_parse_error"),
    ],
)
def test_a_failed_grading_is_a_200_with_every_key(
    server: Server, judge: JudgeServer, grader: Any, answer: Any, flag: str
) -> None:
    judge.answers = [answer]
    done = _run(server, grader, "not JSON")
    assert done["reward"] == 0.0
    errors = done["metadata"]["errors"]
    assert set(errors) == WIRE_ERROR_KEYS
    assert [key for key, value in errors.items() if value is True] == [flag]
    assert (errors["model_grader_server_error_details"] is not None) == (flag == "model_grader_server_error")


def test_an_answer_is_json_when_it_reads_as_json(server: Server) -> None:
    grader = GRADER | {"input": "{{sample.output_json.x}}", "reference": "1"}
    assert _run(server, grader, '{"x": 1}')["reward"] == 1.0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model_sample": "x"}, "grader"),
        ({"grader": GRADER}, "model_sample"),
        ({"grader": GRADER, "model_sample": 4}, "model_sample"),
        ({"grader": GRADER, "model_sample": "x", "item": []}, "item"),
        ({"grader": GRADER, "model_sample": "x", "items": {}}, "items"),
        ({"grader": JUDGE | {"model": "gpt-9"}, "model_sample": "x"}, "grader.model"),
        ({"grader": {"type": "saved", "id": "grader_x"}, "model_sample": "x"}, "grader.id"),
    ],
)
def test_a_bad_run_names_its_parameter(server: Server, judge: JudgeServer, body: Any, param: str) -> None:
    response = server.raw("POST", RUN, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_providers_file_that_cannot_be_read_is_not_worth_a_retry(
    server: Server, judge: JudgeServer
) -> None:
    (server.context.settings.root / "providers.toml").write_text("[")
    response = server.raw("POST", RUN, json={"grader": JUDGE, "model_sample": "x"})
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    assert response.json()["error"]["code"] == "providers_unreadable"


@BOTH
def test_a_saved_grader_lives(server: Server) -> None:
    made = server.raw("POST", "/v1/graders", json={"name": "Exact", "grader": GRADER}).json()
    assert (made["object"], made["name"], made["version"], made["grader"]) == ("grader", "Exact", 1, GRADER)
    address = f"/v1/graders/{made['id']}"
    assert server.raw("GET", address).json() == made
    changed = GRADER | {"operation": "like"}
    second = server.raw("POST", f"{address}/versions", json={"grader": changed}).json()
    assert (second["object"], second["grader_id"], second["version"]) == ("grader.version", made["id"], 2)
    renamed = server.raw("POST", address, json={"name": "Contains"}).json()
    assert (renamed["name"], renamed["version"], renamed["grader"]) == ("Contains", 2, changed)
    listed = server.raw("GET", "/v1/graders").json()
    assert listed == {"object": "list", "data": [renamed], "has_more": False}
    versions = server.raw("GET", f"{address}/versions?limit=1").json()
    assert (versions["data"], versions["has_more"]) == ([second], True)
    saved = {"type": "saved", "id": made["id"], "version": 1}
    assert server.raw("POST", VALIDATE, json={"grader": saved}).json() == {"grader": GRADER}
    assert server.raw("DELETE", address).json() == {
        "id": made["id"],
        "object": "grader.deleted",
        "deleted": True,
    }
    assert server.raw("GET", address).status_code == 404


def test_saved_graders_of_another_project_do_not_exist(server: Server) -> None:
    made = server.raw("POST", "/v1/graders", json={"name": "Exact", "grader": GRADER}).json()
    other = {"authorization": f"Bearer {server.new_key('Other')[1]}"}
    address = f"/v1/graders/{made['id']}"
    assert server.raw("GET", "/v1/graders", headers=other).json()["data"] == []
    for method, path, body in (
        ("GET", address, None),
        ("POST", address, {"name": "x"}),
        ("DELETE", address, None),
        ("GET", f"{address}/versions", None),
        ("POST", f"{address}/versions", {"grader": GRADER}),
    ):
        assert server.raw(method, path, headers=other, json=body).status_code == 404


def _trial(server: Server, **body: Any) -> dict[str, Any]:
    response = server.raw("POST", "/v1/graders/trial", json={"grader": GRADER} | body)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def test_a_trial_on_answers_to_a_file(server: Server, training_file: str) -> None:
    answers = [{"item_index": 0, "output_text": text} for text in ("4", "5", "four")]
    answers += [{"item_index": 1, "output_text": "4"}, {"item_index": 1, "output_text": "4"}]
    report = _trial(server, file=training_file, answers=answers)
    assert (report["object"], report["n"], report["grader"]) == ("grader.trial", 5, GRADER)
    rewards = report["rewards"]
    assert (rewards["graded"], rewards["missing"], rewards["mean"], rewards["distinct"]) == (5, 0, 0.6, 2)
    assert rewards["values"] == [{"reward": 1.0, "count": 3}, {"reward": 0.0, "count": 2}]
    assert [bar["count"] for bar in rewards["histogram"]] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert report["prompts"] == {"n": 2, "with_several_answers": 2, "mixed": 1, "mixed_share": 0.5}
    assert report["errors"] == []
    assert 0 <= report["latency"]["p50"] <= report["latency"]["p95"] <= report["latency"]["max"]
    assert [row["reward"] for row in report["results"]] == [1.0, 0.0, 0.0, 1.0, 1.0]


def test_a_trial_on_fresh_answers_of_a_model(server: Server, training_file: str) -> None:
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        engine.says = "4"
        report = _trial(server, file=training_file, fresh={"model": MODEL, "prompts": 2, "samples": 3})
        asked = sorted(engine.asked, key=lambda one: one["seed"])
    assert [(one["n"], one["seed"], one["temperature"]) for one in asked] == [(3, 0, 1.0), (3, 1, 1.0)]
    assert asked[0]["messages"][-1]["role"] == "user"
    assert [row["item_index"] for row in report["results"]] == [0, 0, 0, 1, 1, 1]
    assert {row["output_text"] for row in report["results"]} == {"4"}
    assert report["prompts"]["with_several_answers"] == 2


def test_fresh_answers_nobody_can_give(server: Server, training_file: str) -> None:
    """Nothing serves here: a 503 that says so, and the service stays up."""

    def asked(**body: Any) -> tuple[int, Any]:
        response = server.raw("POST", "/v1/graders/trial", json={"grader": GRADER} | body)
        error = response.json()["error"]
        return response.status_code, (error["param"], error["message"])

    status, (_, message) = asked(file=training_file, fresh={"model": MODEL})
    assert status == 503
    assert "The inference process, which answers for '" in message
    assert asked(file=training_file, fresh={"model": "nobody"})[0] == 404
    assert asked(fresh={"model": MODEL}) == (
        400,
        ("file", "Invalid 'file': a model can answer only prompts of a file."),
    )
    many = {"model": MODEL, "prompts": 50, "samples": 16}
    assert asked(file=training_file, fresh=many)[1][0] == "fresh"
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        engine.refusal = (400, {"error": {"message": "too long", "param": "messages"}})
        assert asked(file=training_file, fresh={"model": MODEL})[1] == ("messages", "too long")


def test_a_trial_on_a_jobs_stored_rollouts(server: Server, client: openai.OpenAI, job_id: str) -> None:
    records = [
        rollouts.RolloutRecord(
            item_index=0,
            sample_index=sample,
            completion=text,
            reward=None,
            advantage=None,
            grader_rewards={},
            errors={},
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
        )
        for sample, text in enumerate(("4", "44"))
    ]
    uri = rollouts.batch_uri(job_id=job_id, step=1, split="train", token=1)
    server.context.storage.write(uri, rollouts.encode_batch(records))
    with server.context.db.transaction() as session:
        rollouts.save_batch(session, job_id=job_id, step=1, split="train", uri=uri, records=records)
    report = _trial(server, grader=GRADER | {"operation": "like"}, job={"id": job_id, "step": 1})
    assert [row["output_text"] for row in report["results"]] == ["4", "44"]
    assert [row["reward"] for row in report["results"]] == [1.0, 1.0]
    # `like` falls for an answer that holds everything.
    broken = {probe["probe"] for probe in report["probes"] if probe["holds"] is False}
    assert broken == set()
    assert (
        server.raw("POST", "/v1/graders/trial", json={"grader": GRADER, "job": {"id": "ftjob-x"}}).status_code
        == 404
    )


def test_probes_tell_what_a_grader_falls_for(server: Server) -> None:
    items = [{"answer": "Paris"}, {"answer": "Rome"}]
    loose = _trial(server, grader=GRADER | {"operation": "like"}, items=items)
    broken = {probe["probe"] for probe in loose["probes"] if probe["holds"] is False}
    assert broken == {"everything", "upper_case", "lower_case"}
    strict = _trial(server, items=items)
    assert {probe["probe"] for probe in strict["probes"] if probe["holds"] is False} == {
        "whitespace",
        "upper_case",
        "lower_case",
    }
    assert {probe["probe"] for probe in strict["probes"]} >= {
        "reference", "empty", "truncated", "very_long", "injection", "everything"
    }  # fmt: skip
    assert _trial(server, items=items, probes=False)["probes"] == []


def test_a_trial_tells_a_judge_that_is_down_from_a_low_score(server: Server, judge: JudgeServer) -> None:
    judge.answer_to = lambda asked: scores(0.5) if "good" in str(asked["messages"][1:]) else says("eh")
    answers = [{"output_text": text} for text in ("good", "bad", "worse")]
    report = _trial(server, grader=JUDGE, items=[{}], answers=answers, probes=False)
    assert (report["rewards"]["graded"], report["rewards"]["missing"]) == (1, 2)
    (error,) = report["errors"]
    assert (error["error"], error["fault"], error["count"]) == ("model_grader_parse_error", "grader", 2)
    assert "It said: eh" in error["example"]
    usage = report["model_grader_token_usage_per_model"]["judge-8b"]
    assert usage == {name: 3 * count for name, count in TOKENS.items()}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"file": "file-gone"}, 404, "id"),
        ({"answers": [{"output_text": "x", "item_index": 7}], "items": [{}]}, 400, "answers[0].item_index"),
        ({"answers": [{"item_index": 0}]}, 400, "answers[0].output_text"),
        ({"items": []}, 400, "items"),
        ({"job": {"id": "x", "split": "all"}}, 400, "job.split"),
        ({"probes": "no"}, 400, "probes"),
        ({"reference": "{{ item. }}"}, 400, "reference"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type"),
        ({"weight": 1}, 400, "weight"),
    ],
)
def test_a_bad_trial_names_its_parameter(server: Server, body: Any, status: int, param: str) -> None:
    response = server.raw("POST", "/v1/graders/trial", json={"grader": GRADER} | body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_a_job_takes_a_saved_grader(server: Server, client: openai.OpenAI, training_file: str) -> None:
    made = server.raw("POST", "/v1/graders", json={"name": "Exact", "grader": GRADER}).json()
    method = {"type": "reinforcement", "reinforcement": {"grader": {"type": "saved", "id": made["id"]}}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=training_file, method=method)  # type: ignore[arg-type]
    plain = client.fine_tuning.jobs.create(model=MODEL, training_file=training_file, method=METHOD)  # type: ignore[arg-type]
    assert job.method == plain.method
    assert set(job.to_dict()) == set(plain.to_dict())
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert any(made["sha256"] in message for message in messages)


def test_the_file_of_a_trial_must_be_readable(server: Server, client: openai.OpenAI) -> None:
    bad = client.files.create(file=("bad.jsonl", LINES + b"{oops\n"), purpose="fine-tune").id
    answers = [{"item_index": 3, "output_text": "x"}]
    body = {"grader": GRADER, "file": bad, "answers": answers}
    error = server.raw("POST", "/v1/graders/trial", json=body).json()["error"]
    assert error["param"] == "file"
    assert "cannot be read" in error["message"]

"""Details of errors, graders, webhooks and deletions that servers like this one most often get wrong.

Source: as in `test_jobs_details.py`, whose numbers these continue.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from app.core.settings import Settings
from app.services import jobs, models
from tests.app.api.server import GRADER, METHOD, MODEL, Server
from tests.judge import JudgeServer, judging
from tests.receiver import Receiver, listening

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
ERROR_KEYS = {
    *("formula_parse_error", "sample_parse_error", "truncated_observation_error"),
    *("unresponsive_reward_error", "invalid_variable_error", "other_error"),
    *("python_grader_server_error", "python_grader_server_error_type"),
    *("python_grader_runtime_error", "python_grader_runtime_error_details"),
    *("model_grader_server_error", "model_grader_refusal_error"),
    *("model_grader_parse_error", "model_grader_server_error_details"),
}


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """Settings that let webhooks reach a receiver on this machine."""
    return settings.model_copy(update={"webhook_allow": "127.0.0.1"})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody who wants webhooks."""
    with listening() as receiver:
        yield receiver


@pytest.fixture
def judge(server: Server) -> Iterator[JudgeServer]:
    """A judge that the server's data folder names."""
    with judging() as judge:
        judge.write_providers(server.context.settings.root)
        yield judge


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/fine_tuning/jobs/a%0Ab/c%0Ad", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/files?limit=x", 400),
        ("POST", "/v1/fine_tuning/jobs", 400),
        ("POST", "/v1/files", 400),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/embeddings", 404),
    ],
)
def test_detail_11_every_error_is_the_envelope(server: Server, method: str, path: str, status: int) -> None:
    answer = server.raw(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_detail_12_a_permanent_refusal_is_asked_once(server: Server, job_id: str) -> None:
    sent: list[Any] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=2, http_client=http
    ) as client:
        client.fine_tuning.jobs.cancel(job_id)
        refused = (
            lambda: client.fine_tuning.jobs.cancel(job_id),
            lambda: client.fine_tuning.jobs.resume(job_id),
            lambda: client.fine_tuning.jobs.retrieve("ftjob-none"),
            lambda: client.models.delete(MODEL),
        )
        for attempt in refused:
            sent.clear()
            with pytest.raises(openai.APIStatusError) as caught:
                attempt()
            assert caught.value.status_code in (400, 403, 404)
            assert len(sent) == 1


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ({key: value for key, value in GRADER.items() if key != "name"}, GRADER | {"name": "string_check"}),
        (GRADER | {"pass_threshold": 0.5}, GRADER),
        (GRADER | {"operation": "neq"}, GRADER | {"operation": "ne"}),
        (GRADER | {"operation": "ne"}, GRADER | {"operation": "ne"}),
    ],
    ids=["no name", "pass_threshold", "neq", "ne"],
)
def test_detail_15_graders_are_read_leniently(server: Server, written: Any, plain: Any) -> None:
    answer = server.raw("POST", "/v1/fine_tuning/alpha/graders/validate", json={"grader": written})
    assert answer.json() == {"grader": plain}


WORDS = "{{sample.output_text}}"
PART = {"type": "input_text", "text": WORDS}


@pytest.mark.parametrize(
    ("content", "plain"),
    [(WORDS, WORDS), (PART, [PART]), ([PART], [PART]), ([WORDS], [PART])],
    ids=["string", "item", "array", "array of strings"],
)
@pytest.mark.parametrize("limit", ["max_completions_tokens", "max_completion_tokens"])
def test_detail_15_judges_are_read_leniently(
    server: Server, judge: JudgeServer, content: Any, plain: Any, limit: str
) -> None:
    grader = {"type": "score_model", "name": "j", "model": "gpt-judge"}
    written = {
        **grader,
        "input": [{"role": "user", "content": content}],
        "sampling_params": {limit: 64},
        "pass_threshold": 0.5,
    }
    answer = server.raw("POST", "/v1/fine_tuning/alpha/graders/validate", json={"grader": written})
    assert answer.json()["grader"] == {
        **grader,
        "input": [{"role": "user", "content": plain}],
        "sampling_params": {"max_completions_tokens": 64},
    }


@pytest.mark.parametrize(
    "written",
    [
        {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA},
    ],
    ids=["nested", "flat"],
)
def test_detail_15_both_shapes_of_response_format(server: Server, training_file: str, written: Any) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "response_format": written}}
    body = {"model": MODEL, "training_file": training_file, "method": method}
    job = server.raw("POST", "/v1/fine_tuning/jobs", json=body).json()
    given = job["method"]["reinforcement"]["response_format"]
    assert given == {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}


def test_detail_16_failures_of_grading_are_answers(client: openai.OpenAI, server: Server) -> None:
    body = {"grader": GRADER, "model_sample": "4", "item": {}}
    answer = server.raw("POST", "/v1/fine_tuning/alpha/graders/run", json=body)
    assert answer.status_code == 200
    result = answer.json()
    assert set(result["metadata"]["errors"]) == ERROR_KEYS
    assert result["metadata"]["errors"]["invalid_variable_error"] is True
    assert result["reward"] == 0
    assert result["metadata"]["token_usage"] is None
    multi: Any = {
        "type": "multi",
        "name": "m",
        "graders": {"a": GRADER, "b": GRADER | {"operation": "ne"}},
        "calculate_output": "a + 2 * b",
    }
    run = client.fine_tuning.alpha.graders.run(grader=multi, model_sample="4", item={"answer": "4"})
    assert (run.reward, run.sub_rewards) == (1.0, {"a": 1.0, "b": 0.0})
    assert run.metadata.type == "multi"


def test_detail_16_token_usage_is_an_object(server: Server, judge: JudgeServer) -> None:
    grader = {"type": "score_model", "model": "gpt-judge", "input": [{"role": "user", "content": WORDS}]}
    body = {"grader": grader, "model_sample": "4", "item": {}}
    result = server.raw("POST", "/v1/fine_tuning/alpha/graders/run", json=body).json()
    usage = {"prompt_tokens": 190, "total_tokens": 324, "completion_tokens": 134, "cached_tokens": 64}
    assert result["metadata"]["token_usage"] == usage
    assert result["model_grader_token_usage_per_model"] == {result["metadata"]["sampled_model_name"]: usage}
    assert set(result["metadata"]["errors"]) == ERROR_KEYS


def test_detail_17_webhooks_are_signed_as_the_standard_says(
    client: openai.OpenAI, server: Server, receiver: Receiver
) -> None:
    kinds = client.webhooks.event_types.list().data
    assert sorted(kinds) == [f"fine_tuning.job.{how}" for how in ("cancelled", "failed", "succeeded")]
    made = client.webhooks.create(
        name="n", url=receiver.url, event_types=["fine_tuning.job.cancelled", "fine_tuning.job.failed"]
    )
    client.webhooks.test(made.id, event_type="fine_tuning.job.cancelled")
    [delivery] = receiver.received
    event = json.loads(delivery.body)
    assert set(event) == {"id", "object", "created_at", "type", "data"}
    assert (event["object"], event["type"]) == ("event", "fine_tuning.job.cancelled")
    assert set(event["data"]) == {"id"}
    headers = delivery.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + delivery.body
    key = base64.b64decode(made.signing_secret.removeprefix("whsec_"))
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert headers["content-type"] == "application/json"


def test_detail_18_what_deletions_answer(server: Server, training_file: str, job_id: str) -> None:
    name = "ft:tiny/base-model:personal::AbCd1234"
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=name, kind="tuned", uri="x", details={})
    shared = server.raw(
        "POST",
        f"/v1/fine_tuning/checkpoints/{name}/permissions",
        json={"project_ids": [server.project_id]},
    ).json()
    assert shared["object"] == "list"
    permission = shared["data"][0]["id"]
    path = f"/v1/fine_tuning/checkpoints/{name}/permissions/{permission}"
    gone = {"id": permission, "object": "checkpoint.permission", "deleted": True}
    assert server.raw("DELETE", path).json() == gone
    model = server.raw("DELETE", f"/v1/models/{name}").json()
    assert model == {"id": name, "object": "model", "deleted": True}
    assert server.raw("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel").status_code == 200
    file = server.raw("DELETE", f"/v1/files/{training_file}").json()
    assert file == {"id": training_file, "object": "file", "deleted": True}


def test_detail_18_creations_answer_200(server: Server, training_file: str) -> None:
    body = {"model": MODEL, "training_file": training_file, "method": METHOD}
    assert server.raw("POST", "/v1/fine_tuning/jobs", json=body).status_code == 200

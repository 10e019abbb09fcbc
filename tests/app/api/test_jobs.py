"""Jobs through the official client: the object key by key, lists, moves, and what is refused."""

from typing import Any

import openai
import pytest

from app.core.tables import Job
from tests.app.api.server import BOTH, GRADER, LINES, METHOD, MODEL, Server, count_queries

KEYS = {
    "id",
    "object",
    "created_at",
    "error",
    "estimated_finish",
    "eval_id",
    "fine_tuned_model",
    "finished_at",
    "hyperparameters",
    "integrations",
    "metadata",
    "method",
    "model",
    "organization_id",
    "result_files",
    "seed",
    "shared_with_openai",
    "status",
    "trained_tokens",
    "training_file",
    "usage_metrics",
    "user_provided_suffix",
    "validation_file",
}
AUTO = {
    "batch_size": "auto",
    "learning_rate_multiplier": "auto",
    "n_epochs": "auto",
    "eval_interval": "auto",
    "eval_samples": "auto",
    "compute_multiplier": "auto",
    "reasoning_effort": "default",
}


def _body(file_id: str, **changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "training_file": file_id, "method": METHOD} | changes


def test_a_new_job_has_every_key(server: Server, training_file: str) -> None:
    answer = server.raw("POST", "/v1/fine_tuning/jobs", json=_body(training_file))
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert set(job) == KEYS
    assert job["id"].startswith("ftjob-")
    assert job["status"] == "validating_files"
    assert (job["model"], job["training_file"], job["validation_file"]) == (MODEL, training_file, None)
    assert (job["result_files"], job["integrations"], job["shared_with_openai"]) == ([], [], False)
    assert job["organization_id"] == "org-personal"
    nulls = {name for name in KEYS if job[name] is None}
    assert nulls == {
        "error",
        "estimated_finish",
        "eval_id",
        "fine_tuned_model",
        "finished_at",
        "hyperparameters",
        "metadata",
        "trained_tokens",
        "usage_metrics",
        "user_provided_suffix",
        "validation_file",
    }
    assert 0 <= job["seed"] <= 2_147_483_647
    assert job["method"] == {
        "type": "reinforcement",
        "reinforcement": {"grader": GRADER, "hyperparameters": AUTO, "response_format": None},
    }
    assert server.raw("GET", f"/v1/fine_tuning/jobs/{job['id']}").json() == job


def test_what_a_request_sets_is_echoed(client: openai.OpenAI, training_file: str) -> None:
    test_file = client.files.create(file=("test.jsonl", LINES), purpose="fine-tune").id
    grading = {"grader": GRADER, "hyperparameters": {"batch_size": 4, "lora_rank": 8}}
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training_file,
        validation_file=test_file,
        suffix="Orders",
        seed=7,
        metadata={"team": "a", "empty": ""},
        method={"type": "reinforcement", "reinforcement": grading},  # type: ignore[typeddict-item]
        extra_body={"test_file": test_file},
    )
    assert job.validation_file == test_file
    assert (job.seed, job.metadata, job.user_provided_suffix) == (7, {"team": "a", "empty": ""}, "Orders")  # type: ignore[attr-defined]
    assert job.to_dict()["test_file"] == test_file
    assert job.method is not None and job.method.reinforcement is not None
    assert job.method.reinforcement.hyperparameters is not None
    assert job.method.reinforcement.hyperparameters.to_dict() == AUTO | {"batch_size": 4, "lora_rank": 8}


def test_auto_becomes_a_number_once_the_job_runs(
    server: Server, client: openai.OpenAI, training_file: str
) -> None:
    grading = {"grader": GRADER, "hyperparameters": {"batch_size": 4, "temperature": "auto"}}
    method = {"type": "reinforcement", "reinforcement": grading}
    job = server.raw("POST", "/v1/fine_tuning/jobs", json=_body(training_file, method=method)).json()

    def run(row: Job) -> None:
        row.status, row.lease_owner, row.lease_expires_at = "running", "worker", 1e12
        row.started_at, row.training_seconds, row.estimated_finish = 1.0, 12.5, 1_800_000_000.9
        row.resolved = {
            "batch_size": 4,
            "learning_rate_multiplier": 1,
            "n_epochs": 3,
            "eval_interval": 5,
            "eval_samples": 1,
            "compute_multiplier": 1,
            "temperature": 1.0,
            "lora_rank": 16,
            "total_steps": 20,
            "reasoning_effort": "default",
        }

    server.change_job(job["id"], run)
    running = client.fine_tuning.jobs.retrieve(job["id"]).to_dict()
    assert running["method"]["reinforcement"]["hyperparameters"] == {  # type: ignore[index]
        "batch_size": 4,
        "learning_rate_multiplier": 1,
        "n_epochs": 3,
        "eval_interval": 5,
        "eval_samples": 1,
        "compute_multiplier": 1,
        "temperature": 1.0,
        "reasoning_effort": "default",
    }
    assert running["estimated_finish"] == 1_800_000_000
    assert running["usage_metrics"] == {"training_time_seconds": 12.5, "model_graders_token_usage": {}}


def test_an_ended_job_names_its_model_files_and_error(
    server: Server, client: openai.OpenAI, job_id: str
) -> None:
    def fail(row: Job) -> None:
        row.status, row.finished_at = "failed", 1_700_000_000.7
        row.error_code, row.error_param, row.error_message = "invalid_training_file", "training_file", "bad"

    server.change_job(job_id, fail)
    failed = client.fine_tuning.jobs.retrieve(job_id)
    assert failed.error is not None
    assert (failed.error.code, failed.error.param, failed.error.message) == (
        "invalid_training_file",
        "training_file",
        "bad",
    )
    assert failed.finished_at == 1_700_000_000

    def succeed(row: Job) -> None:
        row.status, row.error_code = "succeeded", None
        row.fine_tuned_model, row.result_file = "ft:tiny/base-model:personal::abcdefgh", "file-result"

    server.change_job(job_id, succeed)
    done = client.fine_tuning.jobs.retrieve(job_id)
    assert done.error is None
    assert done.fine_tuned_model == "ft:tiny/base-model:personal::abcdefgh"
    assert done.result_files == ["file-result"]


@BOTH
def test_jobs_page_newest_first_with_metadata_filters(
    client: openai.OpenAI, server: Server, training_file: str
) -> None:
    def create(metadata: dict[str, str] | None) -> str:
        return client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=training_file,
            method=METHOD,  # type: ignore[arg-type]
            metadata=metadata,
        ).id

    plain, red, empty = create(None), create({"colour": "red", "a b&c": "d"}), create({"colour": ""})
    quoted = create({'k"]o.d[$': "it's"})
    page = client.fine_tuning.jobs.list(limit=2)
    assert page.has_more
    assert [job.id for job in page.data] == [quoted, empty]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == [quoted, empty, red, plain]

    def found(query: str) -> list[str]:
        answer = server.raw("GET", f"/v1/fine_tuning/jobs?{query}")
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {"object", "data", "has_more"}
        return [job["id"] for job in answer.json()["data"]]

    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"colour": "red"})] == [red]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"a b&c": "d", "colour": "red"})] == [red]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={'k"]o.d[$': "it's"})] == [quoted]
    assert found("metadata[colour]=red") == found("metadata%5Bcolour%5D=red") == [red]
    assert found("metadata[colour]=") == [empty]
    assert found("metadata[colour]=blue") == []
    assert found("metadata=null") == found("metadata=") == [plain]
    assert found("colour=red&limit=1") == [quoted]


@BOTH
def test_cancel_pause_and_resume(client: openai.OpenAI, server: Server, job_id: str) -> None:
    def queue(row: Job) -> None:
        row.status = "queued"

    server.change_job(job_id, queue)
    assert client.fine_tuning.jobs.pause(job_id).status == "paused"  # type: ignore[comparison-overlap]
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"
    cancelled = server.raw("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel", json={})
    assert cancelled.json()["status"] == "cancelled"
    assert cancelled.json()["finished_at"] is not None
    for move in ("cancel", "pause", "resume"):
        answer = server.raw("POST", f"/v1/fine_tuning/jobs/{job_id}/{move}")
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_job_state", None)
        assert job_id in error["message"] and "cancelled" in error["message"]


def test_an_unknown_or_foreign_job_is_404(client: openai.OpenAI, server: Server, job_id: str) -> None:
    _, key = server.new_key("other")
    for caller, wanted in ((client, "ftjob-none"), (client.with_options(api_key=key), job_id)):
        jobs = caller.fine_tuning.jobs
        for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError) as caught:
                call(wanted)
            assert caught.value.body == {
                "message": f"Could not find fine tune: {wanted}",
                "type": "invalid_request_error",
                "param": "fine_tune_id",
                "code": "fine_tune_not_found",
            }
    assert client.fine_tuning.jobs.retrieve(job_id).status == "validating_files"
    assert client.with_options(api_key=key).fine_tuning.jobs.list().data == []


HYPER = "method.reinforcement.hyperparameters"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": "gpt-x"}, "model", "model_not_available"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"training_file": "file-none"}, "training_file", "invalid_value"),
        ({"validation_file": "file-none"}, "validation_file", "invalid_value"),
        ({"test_file": ["file-none"]}, "test_file", "invalid_type"),
        ({"training_file": "PURPOSE"}, "training_file", "invalid_value"),
        ({"suffix": "s" * 65}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**40}, "seed", "invalid_value"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"method": None}, "method", "unsupported_value"),
        ({"method": {"type": "supervised"}}, "method.type", "unsupported_value"),
        ({"method": {"type": "dpo"}}, "method.type", "unsupported_value"),
        ({"method": {"type": "other"}}, "method.type", "invalid_value"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement", "missing_required_parameter"),
        ({"hyper": {"batch_size": 0}}, f"{HYPER}.batch_size", "invalid_value"),
        ({"hyper": {"batch_size": "big"}}, f"{HYPER}.batch_size", "invalid_type"),
        ({"hyper": {"n_epochs": 51}}, f"{HYPER}.n_epochs", "invalid_value"),
        ({"hyper": {"foo": 1}}, f"{HYPER}.foo", "unknown_parameter"),
        ({"hyper": {"samples_per_prompt": 1}}, f"{HYPER}.samples_per_prompt", "invalid_value"),
    ],
)
def test_a_bad_parameter_is_400_and_makes_no_job(
    server: Server, client: openai.OpenAI, training_file: str, changes: dict[str, Any], param: str, code: str
) -> None:
    if changes.get("training_file") == "PURPOSE":
        changes = {"training_file": client.files.create(file=("a.txt", b"x"), purpose="user_data").id}
    if "hyper" in changes:
        grading = {"grader": GRADER, "hyperparameters": changes["hyper"]}
        changes = {"method": {"type": "reinforcement", "reinforcement": grading}}
    answer = server.raw("POST", "/v1/fine_tuning/jobs", json=_body(training_file, **changes))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error"
    assert client.fine_tuning.jobs.list().data == []


@pytest.mark.parametrize(
    "grader",
    [
        None,
        "string_check",
        {},
        {"type": "string_check"},
        GRADER | {"operation": "is"},
        GRADER | {"input": "{{sample.nothing}}"},
        GRADER | {"input": "{{nothing.here}}"},
        GRADER | {"input": "{{"},
        {"type": "multi", "name": "m", "graders": {"a": GRADER}, "calculate_output": "a + b"},
    ],
)
def test_a_bad_grader_is_400_naming_it(server: Server, training_file: str, grader: object) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    answer = server.raw("POST", "/v1/fine_tuning/jobs", json=_body(training_file, method=method))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("method.reinforcement.grader")


def test_a_list_costs_the_same_queries_at_any_length(
    server: Server, client: openai.OpenAI, training_file: str
) -> None:
    def create(count: int) -> None:
        for _ in range(count):
            client.fine_tuning.jobs.create(model=MODEL, training_file=training_file, method=METHOD)  # type: ignore[arg-type]

    def queries(path: str) -> int:
        return count_queries(server.context, lambda: server.raw("GET", path).raise_for_status())

    create(1)
    after_one = [queries(path) for path in ("/v1/fine_tuning/jobs?limit=100", "/v1/files")]
    create(11)
    assert [queries(path) for path in ("/v1/fine_tuning/jobs?limit=100", "/v1/files")] == after_one

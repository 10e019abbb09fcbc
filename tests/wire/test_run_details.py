"""Details that show only once a job has run: pausing, bad data, names of metrics, checkpoints. With a worker.

Source: as in `test_jobs_details.py`, whose numbers these continue.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.factories import jsonl, question
from tests.service import running_service

GRADER = {
    "type": "string_check",
    "name": "says a",
    "input": "{{sample.output_text}}",
    "reference": "a",
    "operation": "like",
}
SMALL = {"samples_per_prompt": 2, "max_completion_tokens": 4, "eval_samples": 1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The official client on a whole service."""
    with (
        running_service(tmp_path_factory.mktemp("service"), poll_seconds="1") as service,
        OpenAI(base_url=f"{service.url}/v1", api_key=service.key()) as client,
    ):
        yield client


def _create(client: OpenAI, rows: bytes | None = None, **hyperparameters: Any) -> str:
    data = rows if rows is not None else jsonl(question(f"Question {n}?", "a") for n in range(10))
    file = client.files.create(file=("train.jsonl", data), purpose="fine-tune")
    chosen = {"grader": GRADER, "hyperparameters": SMALL | hyperparameters}
    method: Any = {"type": "reinforcement", "reinforcement": chosen}
    return client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=method).id


def _wait(client: OpenAI, job_id: str, *statuses: str) -> FineTuningJob:
    deadline = time.monotonic() + 120
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in statuses:
        assert time.monotonic() < deadline, f"the job stands at {job.status}: {job.error}"
        assert job.status != "failed", job.error
        time.sleep(0.1)
    return job


@pytest.fixture(scope="module")
def done(client: OpenAI) -> FineTuningJob:
    """A job that succeeded, of five steps with a validation after each."""
    return _wait(client, _create(client, batch_size=2, n_epochs=1, eval_interval=1), "succeeded")


def test_detail_06_pausing_leaves_a_usable_model(client: OpenAI) -> None:
    job_id = _create(client, batch_size=1, n_epochs=50, eval_interval=1000)
    _wait(client, job_id, "running")
    while not _metrics(client, job_id):
        time.sleep(0.1)
    assert client.fine_tuning.jobs.pause(job_id).status in ("pausing", "paused")
    paused = _wait(client, job_id, "paused")
    assert (paused.finished_at, paused.fine_tuned_model) == (None, None)
    snapshot = client.fine_tuning.jobs.checkpoints.list(job_id).data[0]
    model = client.models.retrieve(snapshot.fine_tuned_model_checkpoint)
    assert model.id.endswith(f":ckpt-step-{snapshot.step_number}")
    step = snapshot.step_number
    assert client.fine_tuning.jobs.resume(job_id).status in ("queued", "running")
    deadline = time.monotonic() + 120
    while max(_metrics(client, job_id)) <= step:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.fine_tuning.jobs.cancel(job_id)
    steps = sorted(_metrics(client, job_id))
    assert steps == list(range(len(steps)))


def _metrics(client: OpenAI, job_id: str) -> dict[int, dict[str, Any]]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=100)
    found: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.type == "metrics":
            data: Any = event.data
            assert data["step"] not in found
            found[data["step"]] = data
    return found


def test_detail_10_bad_data_is_a_job_that_fails(client: OpenAI) -> None:
    rows = json.dumps({"messages": [{"role": "usr", "content": "x"}]}).encode() + b"\n"
    job_id = _create(client, rows)
    deadline = time.monotonic() + 60
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert job.finished_at is not None
    assert job.fine_tuned_model is None


def test_detail_19_metrics_stand_under_both_names(client: OpenAI, done: FineTuningJob) -> None:
    found = _metrics(client, done.id)
    for step in range(1, 6):
        data = found[step]
        assert (data["step"], data["total_steps"]) == (step, 5)
        assert data["scores"]["train_reward_mean"] == data["train_mean_reward"]
        assert data["scores"]["valid_reward_mean"] == data["full_valid_mean_reward"]
        assert {"completion_tokens_mean", "mean_unresponsive_rewards", "usage", "errors", "timing"} <= set(
            data
        )


def test_detail_19_messages_carry_an_empty_object(client: OpenAI, done: FineTuningJob) -> None:
    messages = [event for event in client.fine_tuning.jobs.list_events(done.id) if event.type == "message"]
    assert messages[0].message == "The job has successfully completed"
    assert messages[-1].message == f"Created fine-tuning job: {done.id}"
    assert all(event.data == {} for event in messages)


def test_detail_19_auto_is_a_number_once_the_job_runs(done: FineTuningJob) -> None:
    wire = done.to_dict()
    hyperparameters: Any = wire["method"]["reinforcement"]["hyperparameters"]  # type: ignore[index]
    assert "auto" not in hyperparameters.values()
    assert (hyperparameters["batch_size"], hyperparameters["learning_rate_multiplier"]) == (2, 1)


def test_detail_19_the_three_best_checkpoints_are_kept(client: OpenAI, done: FineTuningJob) -> None:
    rewards = {step: data.get("full_valid_mean_reward") for step, data in _metrics(client, done.id).items()}
    kept = list(client.fine_tuning.jobs.checkpoints.list(done.id))
    assert len(kept) == 3
    assert [one.step_number for one in kept] == sorted((one.step_number for one in kept), reverse=True)
    names = [one.fine_tuned_model_checkpoint for one in kept]
    assert len({name.split(":")[4] for name in [*names, str(done.fine_tuned_model)]}) == 4
    lowest = min(rewards[one.step_number] for one in kept)
    kept_steps = {one.step_number for one in kept}
    assert all(rewards[step] <= lowest for step in range(1, 6) if step not in kept_steps)


def test_detail_19_the_columns_of_the_result_file(client: OpenAI, done: FineTuningJob) -> None:
    first, *rows = client.files.content(done.result_files[0]).text.splitlines()
    assert first.split(",")[:6] == [
        *("step", "train_mean_reward", "full_valid_mean_reward", "completion_tokens_mean"),
        *("reasoning_tokens_mean", "mean_unresponsive_rewards"),
    ]
    assert all(name.startswith("errors/graders/says a/") for name in first.split(",")[6:])
    assert len(rows) >= 5

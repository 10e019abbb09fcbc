"""The whole product through real processes: broker, web, worker, trainer, the official client, a receiver.

One service for the module; its model is tiny and random, its task is to say a letter.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.factories import jsonl, question
from tests.receiver import Receiver, listening
from tests.service import Service, running_service

GRADER = {
    "type": "string_check",
    "name": "says a",
    "input": "{{sample.output_text}}",
    "reference": "{{item.letter}}",
    "operation": "like",
}
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service that may send webhooks to this machine."""
    folder = tmp_path_factory.mktemp("service")
    with running_service(folder, webhook_allow="127.0.0.1", lease_seconds="6", poll_seconds="1") as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    """The official client, told nothing but the address and the key."""
    with OpenAI(base_url=f"{service.url}/v1", api_key=service.key()) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody who wants webhooks."""
    with listening() as receiver:
        yield receiver


def upload(client: OpenAI, count: int, name: str) -> str:
    """Upload questions that all want the letter a."""
    data = jsonl(question(f"{name} {n}", "") | {"letter": "a"} for n in range(count))
    file = client.files.create(file=(f"{name}.jsonl", data), purpose="fine-tune")
    return client.files.wait_for_processing(file.id).id


def create(client: OpenAI, *, train: int = 12, extra: dict[str, Any] | None = None, **numbers: Any) -> str:
    """Create a job and return its id."""
    hyperparameters = {"batch_size": 4, "samples_per_prompt": 4, "max_completion_tokens": 8, "n_epochs": 1}
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, train, "train"),
        validation_file=upload(client, 3, "valid"),
        suffix="letters",
        seed=5,
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters | numbers},  # type: ignore[typeddict-item]
        },
        extra_body=extra,
    )
    assert (job.status, job.seed, job.hyperparameters) == ("validating_files", 5, None)
    return job.id


def wait(
    client: OpenAI,
    service: Service,
    job_id: str,
    until: Callable[[FineTuningJob], bool],
    seconds: float = 180,
) -> FineTuningJob:
    """Wait for a job to get somewhere; on the way it must not fail."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status != "failed", f"{job.error}\n{service.logs()}"
        if until(job):
            return job
        time.sleep(0.1)
    raise AssertionError(f"job {job_id} stands at {job.status}\n{service.logs()}")


def steps(client: OpenAI, job_id: str) -> list[int]:
    """Return the steps of the job's metrics events, oldest first."""
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=2))
    return [event.data["step"] for event in reversed(events) if event.type == "metrics"]  # type: ignore[index]


def test_a_whole_job_through_the_official_client(
    client: OpenAI, service: Service, receiver: Receiver
) -> None:
    """From upload to webhook: every object the client reads is there and agrees with the others."""
    endpoint = client.post(
        "/webhook_endpoints",
        cast_to=httpx.Response,
        body={"name": "t", "url": receiver.url, "event_types": ["fine_tuning.job.succeeded"]},
    ).json()
    test_file = upload(client, 6, "test")
    job_id = create(client, extra={"test_file": test_file}, eval_interval=2)
    job = wait(client, service, job_id, lambda job: job.status in ENDED)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:personal:letters:")
    assert job.method is not None
    assert job.method.reinforcement is not None
    assert job.method.reinforcement.hyperparameters is not None
    assert job.method.reinforcement.hyperparameters.batch_size == 4
    assert steps(client, job_id) == [0, 1, 2, 3]
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job_id)]
    assert messages[0] == "The job has successfully completed"
    assert messages[-1] == f"Created fine-tuning job: {job_id}"
    kept = list(client.fine_tuning.jobs.checkpoints.list(job_id))
    assert [checkpoint.step_number for checkpoint in kept] == [3, 2]
    names = {model.id for model in client.models.list()}
    assert {"tiny", job.fine_tuned_model, kept[0].fine_tuned_model_checkpoint} <= names
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    csv = client.files.content(job.result_files[0]).text
    assert csv.startswith("step,train_mean_reward,full_valid_mean_reward,")
    base = {"Authorization": f"Bearer {service.key()}"}
    verdict = httpx.get(f"{service.url}/v1/fine_tuning/jobs/{job_id}/evaluation", headers=base).json()
    assert (verdict["split"], verdict["n"]) == ("test", 6)
    rollouts = httpx.get(
        f"{service.url}/v1/fine_tuning/jobs/{job_id}/rollouts", headers=base, params={"step": 1, "limit": 100}
    ).json()
    assert len(rollouts["data"]) == 16
    rewards = [row["reward"] for row in rollouts["data"]]
    event = next(
        e
        for e in client.fine_tuning.jobs.list_events(job_id)
        if e.type == "metrics" and e.data["step"] == 1  # type: ignore[index]
    )
    assert event.data["train_mean_reward"] == pytest.approx(sum(rewards) / len(rewards))  # type: ignore[index]
    deadline = time.monotonic() + 30
    while not receiver.received:
        assert time.monotonic() < deadline, service.logs()
        time.sleep(0.1)
    (delivery,) = receiver.received
    unwrapped = client.webhooks.unwrap(delivery.body, delivery.headers, secret=endpoint["signing_secret"])
    assert (unwrapped.type, unwrapped.data.id) == ("fine_tuning.job.succeeded", job_id)  # type: ignore[union-attr]


def trainer_of(service: Service, *, after: int | None = None) -> int:
    """Return the pid of the running trainer, once one runs that is not `after`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            pid, is_ours = int(folder.name), str(service.data).encode() in environment
            if b"worker.trainer" in words and is_ours and pid != after:
                return pid
        time.sleep(0.1)
    raise AssertionError(f"no trainer runs\n{service.logs()}")


def test_killed_trainer_and_worker_change_nothing(client: OpenAI, service: Service) -> None:
    """After kill -9 of the trainer, then of the worker, the job goes on; no step is done twice."""
    job_id = create(client, train=40, max_completion_tokens=24)
    wait(client, service, job_id, lambda job: job.status == "running" and len(steps(client, job_id)) >= 2)
    killed = trainer_of(service)
    os.kill(killed, signal.SIGKILL)
    # The step it was at may still be seen to end: only another trainer's steps tell that the job went on.
    trainer_of(service, after=killed)
    seen = len(steps(client, job_id))
    wait(client, service, job_id, lambda job: len(steps(client, job_id)) > seen)
    orphan = trainer_of(service, after=killed)
    service.kill("worker")
    job = wait(client, service, job_id, lambda job: job.status in ENDED)
    assert job.status == "succeeded"
    assert steps(client, job_id) == list(range(11))
    assert not Path(f"/proc/{orphan}").exists()


def test_cancel_stops_within_a_step(client: OpenAI, service: Service) -> None:
    """The answer says cancelled at once, no step is committed after it, and the trainer is gone."""
    job_id = create(client, train=200, max_completion_tokens=64)
    wait(client, service, job_id, lambda job: len(steps(client, job_id)) >= 2)
    trainer = trainer_of(service)
    assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    seen = steps(client, job_id)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{trainer}").exists():
        assert time.monotonic() < deadline, "the trainer of a cancelled job still runs"
        time.sleep(0.1)
    assert steps(client, job_id) == seen
    with pytest.raises(openai.BadRequestError) as refusal:
        client.fine_tuning.jobs.cancel(job_id)
    assert refusal.value.code == "invalid_job_state"


def test_bad_data_is_a_failed_job(client: OpenAI) -> None:
    """A wrong role is found when the job starts; the error names file, line and field."""
    row = {"messages": [{"role": "asistant", "content": "x"}], "letter": "a"}
    file = client.files.create(file=("bad.jsonl", json.dumps(row).encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        method={"type": "reinforcement", "reinforcement": {"grader": GRADER}},  # type: ignore[typeddict-item]
    )
    deadline = time.monotonic() + 60
    while job.status not in ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert "asistant" in job.error.message
    assert "ine 1" in job.error.message

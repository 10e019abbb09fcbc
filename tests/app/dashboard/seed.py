"""A believable project for pages to show: files, jobs in every status, their metrics, rollouts, models, keys.

All numbers are made from one seed, so two runs look the same. Used by the dashboard's tests and, by hand,
to look at its pages.
"""

import math
import random
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core import clock
from app.core.context import Context
from app.core.tables import Heartbeat, Job, Project
from app.services import api_keys, events, models, projects, webhooks
from tests import factories
from tests.app.dashboard.seed_steps import add_step, sample

MODEL = "smollm2-135m-instruct"
LARGER = "qwen3-0.6b"
HYPERPARAMETERS = dict.fromkeys(
    (
        "batch_size",
        "learning_rate_multiplier",
        "n_epochs",
        "eval_interval",
        "eval_samples",
        "compute_multiplier",
    ),
    "auto",
) | {"reasoning_effort": "default"}
RESOLVED = {
    "batch_size": 8,
    "learning_rate_multiplier": 1.0,
    "n_epochs": 1,
    "eval_interval": 5,
    "eval_samples": 1,
    "compute_multiplier": 1.0,
    "samples_per_prompt": 8,
    "max_completion_tokens": 64,
    "temperature": 1.0,
    "lora_rank": 16,
    "kl_beta": 0.0,
}
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_json.order_number}}",
    "reference": "{{item.order_number}}",
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "order",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"order_number": {"type": "string"}},
            "required": ["order_number"],
            "additionalProperties": False,
        },
    },
}
MESSAGES = (
    "My parcel {n} has not come although it was promised for Friday.",
    "Could you check invoice 2026-118 against order {n}? The total is off by 12.40.",
    "Two lamps arrived, I had asked for one. Order {n}, customer since 2019.",
    "Please cancel {n}, I was charged twice. Reach me at 555-0147.",
    "The box for {n} was open when it came on the 14th.",
    "I would like to change the address of {n} to Hill Street 22.",
)


@dataclass(frozen=True)
class Seeded:
    """The ids of what was made."""

    project_id: str
    running: str
    succeeded: str
    failed: str
    paused: str
    cancelled: str
    queued: str
    validating: str
    training_file: str


def seed(context: Context) -> Seeded:
    """Fill an empty database."""
    draw = random.Random(7)
    with context.db.transaction() as session:
        project = projects.default_project(session)
        factories.make_base_model(
            session,
            MODEL,
            parameters=134_515_008,
            context=8192,
            licence="Apache-2.0",
            weights_bytes=538_060_032,
        )
        factories.make_base_model(
            session, LARGER, parameters=596_049_920, context=32768, licence="Apache-2.0"
        )
        made = {
            name: factories.make_file(
                session, project, context.storage, data=_rows(draw, count), filename=f"orders_{name}.jsonl"
            ).id
            for name, count in (("train", 160), ("valid", 60), ("test", 120))
        }
        session.add(
            Heartbeat(
                part="worker",
                pid=4211,
                host="laptop",
                detail={"device": "CPU", "cores": 2},
                beat_at=clock.now(),
            )
        )
        api_keys.create_key(session, project_id=project.id, name="training script")
        jobs = _jobs(session, project, made)
        _endpoint(session, context, project, jobs["succeeded"])
    for name, steps in (("succeeded", 20), ("running", 12), ("paused", 8)):
        with context.db.transaction() as session:
            _train(session, context, session.get_one(Job, jobs[name]), steps, draw)
    with context.db.transaction() as session:
        _finish(session, context, session.get_one(Job, jobs["succeeded"]), draw)
        _fail(session, session.get_one(Job, jobs["failed"]))
    return Seeded(project.id, training_file=made["train"], **jobs)


def _rows(draw: random.Random, count: int) -> bytes:
    def row() -> dict[str, object]:
        number = f"{draw.choice('ABCDEFGH')}{draw.randrange(10_000, 99_999)}"
        text = draw.choice(MESSAGES).format(n=number)
        rules = {"role": "system", "content": "Find the order number in the message. Answer as JSON."}
        return {"messages": [rules, {"role": "user", "content": text}], "order_number": number}

    return factories.jsonl(row() for _ in range(count))


def _jobs(session: Session, project: Project, made: dict[str, str]) -> dict[str, str]:
    inner = {"grader": GRADER, "hyperparameters": HYPERPARAMETERS, "response_format": FORMAT}
    now = clock.now()
    leased = {"lease_owner": "laptop:4211", "lease_expires_at": now + 3600}
    trained = {"resolved": RESOLVED, "total_steps": 20, "started_at": now - 300}
    ages = {
        "succeeded": ("order-numbers-v1", 86_400, trained),
        "failed": ("typo", 90_000, {}),
        "cancelled": ("too-hot", 180_000, {}),
        "paused": ("careful", 7_200, trained),
        "validating_files": ("next-week", 30, leased),
        "queued": ("bigger", 60, {}),
        "running": ("order-numbers", 240, trained | leased | {"estimated_finish": now + 130}),
    }
    ids = {}
    for status, (suffix, age, more) in ages.items():
        job = factories.make_job(
            session,
            project,
            status=status if status != "succeeded" else "running",
            model=LARGER if status == "queued" else MODEL,
            suffix=suffix,
            training_file=made["train"],
            validation_file=made["valid"],
            test_file=made["test"] if status != "paused" else None,
            method={"type": "reinforcement", "reinforcement": dict(inner)},
            created_at=now - age,
            **(more | leased if status == "succeeded" else more),
        )
        events.append(session, job_id=job.id, message=f"Created fine-tuning job: {job.id}")
        ids["validating" if status == "validating_files" else status] = job.id
    return ids


def _train(session: Session, context: Context, job: Job, steps: int, draw: random.Random) -> None:
    events.append(session, job_id=job.id, message="Files validated, moving job to queued state")
    events.append(session, job_id=job.id, message="Fine-tuning job started")
    sample(session, context, job, 0, "valid", range(60), 1, 0.25, draw)
    for step in range(steps + 1):
        add_step(session, job, step, draw)
        level = 0.25 + 0.65 * (1 - math.exp(-step / 6))
        if step:
            sample(session, context, job, step, "train", range(step * 8 - 8, step * 8), 8, level, draw)
        if step and step % 5 == 0:
            sample(session, context, job, step, "valid", range(60), 1, level, draw)
    if job.suffix == "careful":
        text = "Paused after 3 steps in which over 10% of the grades failed. Last: KeyError: 'order'"
        events.append(session, job_id=job.id, level="warn", message=text)


def _finish(session: Session, context: Context, job: Job, draw: random.Random) -> None:
    sample(session, context, job, 0, "test", range(120), 1, 0.24, draw)
    sample(session, context, job, 20, "test", range(120), 1, 0.92, draw)
    name = models.tuned_name(start=job.model, organization="personal", suffix=job.suffix)
    models.add_tuned(session, job=job, model_id=name, kind="tuned", uri=f"jobs/{job.id}/final", details={})
    events.append(session, job_id=job.id, message=f"New fine-tuned model created: {name}")
    events.append(session, job_id=job.id, message="The job has successfully completed")
    session.flush()
    job.status, job.fine_tuned_model = "succeeded", name
    job.lease_owner = job.lease_expires_at = None
    job.training_seconds, job.finished_at = 214.0, job.created_at + 240


def _fail(session: Session, job: Job) -> None:
    job.error_code, job.error_param = "invalid_training_file", "training_file"
    job.error_message = (
        "The job failed due to an invalid training file. "
        'Line 17: `messages[1].role` is "asistant"; did you mean "assistant"?'
    )
    job.finished_at = job.created_at + 2
    session.flush()
    events.append(session, job_id=job.id, level="error", message=job.error_message)


def _endpoint(session: Session, context: Context, project: Project, job_id: str) -> None:
    webhooks.create_endpoint(
        session,
        settings=context.settings,
        project_id=project.id,
        name="Pipeline",
        url="https://93.184.216.34/hooks/tunesmith",
        event_types=["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
    )
    webhooks.emit(session, project_id=project.id, type="fine_tuning.job.succeeded", object_id=job_id)

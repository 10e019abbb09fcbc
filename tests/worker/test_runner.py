"""A job from its row to its model, in this process: what is committed, kept, and resumed bit for bit."""

import json
from collections.abc import Callable

import pytest
from sqlalchemy import select

from app.core.context import Context
from app.core.tables import Checkpoint, Event, Job, Model, Rollout, Step, Webhook
from app.services import checkpoints, evaluations, files, jobs, leases, rollouts
from app.services.leases import Lease, LeaseLost
from tests.worker.conftest import MakeJob, rows
from worker.runner import Run
from worker.validation import validate


def claim(context: Context) -> Lease:
    """Claim the one job there is."""
    with context.db.transaction() as session:
        lease = leases.claim(session, owner="test", seconds=60, max_attempts=5)
    assert lease is not None
    return lease


def work(context: Context, stopping: Callable[[], bool] = lambda: False) -> None:
    """Do what one trainer process does after one claim."""
    lease = claim(context)
    with context.db.reading() as session:
        status = session.get_one(Job, lease.job_id).status
    if status == "validating_files":
        validate(context, lease)
    else:
        Run(context, lease, stopping).train()


def read(context: Context, job: Job) -> Job:
    """Read the job afresh."""
    with context.db.reading() as session:
        return session.get_one(Job, job.id)


def adapter(context: Context, job: Job) -> bytes:
    """Return the bytes of the job's final adapter."""
    with context.db.reading() as session:
        model = session.get_one(Model, read(context, job).fine_tuned_model)
    assert model.uri is not None
    return (context.storage.path(model.uri) / "adapter_model.safetensors").read_bytes()


def test_a_job_ends_with_a_model_and_its_whole_story(context: Context, create: MakeJob) -> None:
    """Validated, trained, measured: rows, files, checkpoints, CSV, verdict and webhook are all there."""
    job = create(valid=rows(3), test=rows(5), suffix="Say A")
    work(context)
    assert read(context, job).status == "queued"
    work(context)
    done = read(context, job)
    assert (done.status, done.step, done.total_steps, done.error_message) == ("succeeded", 3, 3, None)
    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith("ft:tiny:personal:say-a:")
    assert done.resolved is not None
    assert done.resolved["batch_size"] == 4
    with context.db.reading() as session:
        assert session.scalars(select(Step.step).order_by(Step.step)).all() == [0, 1, 2, 3]
        kept = session.scalars(select(Checkpoint).order_by(Checkpoint.step_number)).all()
        assert [row.step_number for row in kept] == [2, 3]
        for row in kept:
            assert (context.storage.path(row.uri) / "adapter_model.safetensors").is_file()
        counts = {
            (batch.step, batch.split): batch.count for batch in rollouts.list_batches(session, job_id=job.id)
        }
        verdict = evaluations.evaluation(session, job=done)
        assert session.scalars(select(Webhook.type)).all() == ["fine_tuning.job.succeeded"]
        result = files.get_file(session, project_id=job.project_id, file_id=done.result_file or "")
    assert counts == {
        (0, "valid"): 3,
        (0, "test"): 5,
        (1, "train"): 16,
        (2, "train"): 16,
        (2, "valid"): 3,
        (3, "train"): 16,
        (3, "valid"): 3,
        (3, "test"): 5,
    }
    assert verdict is not None
    assert (verdict["split"], verdict["n"]) == ("test", 5)
    text = b"".join(context.storage.chunks(files.file_uri(result))).decode()
    assert [line.split(",")[0] for line in text.splitlines()] == ["step", "0", "1", "2", "3"]
    # The recovery checkpoints are gone: the model is what stays.
    assert not list((context.storage.root / "jobs" / job.id / "recovery").glob("*"))


def test_metrics_events_speak_openais_names(context: Context, create: MakeJob) -> None:
    """Both name families, `valid_*` only where it was measured, and a message with the odd comma."""
    create(valid=rows(3))
    work(context)
    work(context)
    with context.db.reading() as session:
        found = session.scalars(select(Event).where(Event.type == "metrics").order_by(Event.seq)).all()
    base, first, second = found[0].data, found[1].data, found[2].data
    assert {"full_valid_mean_reward", "full_valid_mean_parse_error"} <= base.keys()
    assert "train_mean_reward" not in base
    assert "train_reward_mean" not in base["scores"]
    assert "full_valid_mean_reward" not in first
    assert first["train_mean_reward"] == first["scores"]["train_reward_mean"]
    assert first["scores"]["graders"][0]["name"] == "says a"
    assert first["timing"]["step"]["full_iteration"] >= first["timing"]["step"]["sampling"]
    assert second["scores"]["valid_reward_mean"] == second["full_valid_mean_reward"]
    assert found[2].message.startswith("Step 2/3 , train mean reward=")
    assert "full validation mean reward=" in found[2].message


def test_without_a_validation_file_some_training_rows_are_held_out(context: Context, create: MakeJob) -> None:
    """A tenth is never trained on, and an event says so, once."""
    job = create(train=rows(20), hyperparameters={"batch_size": 9})
    work(context)
    work(context)
    with context.db.reading() as session:
        trained = set(session.scalars(select(Rollout.item_index).where(Rollout.split == "train")))
        validated = set(session.scalars(select(Rollout.item_index).where(Rollout.split == "valid")))
        notes = session.scalars(select(Event.message).where(Event.message.contains("held out"))).all()
    assert (len(trained), len(validated), trained & validated) == (18, 2, set())
    assert notes == ["No validation file: 2 of 20 training examples are held out to validate on"]
    assert read(context, job).validation_file is None


def test_a_stopped_run_ends_bit_identical(context: Context, create: MakeJob) -> None:
    """Stopped after every step and resumed by a new claim, the adapter equals the uninterrupted one."""
    files_of = {"train": rows(12), "valid": rows(2)}
    whole = create(**files_of)
    work(context)
    work(context)
    broken = create(**files_of)
    work(context)
    claims = 0
    while read(context, broken).status == "queued":
        work(context, stopping=lambda: True)
        claims += 1
    assert read(context, broken).status == "succeeded"
    # The base line, three steps, and the end.
    assert claims == 5
    assert adapter(context, broken) == adapter(context, whole)
    with context.db.reading() as session:
        steps = [
            [row.metrics["scores"] for row in session.scalars(query)]
            for query in (
                select(Step).where(Step.job_id == one.id).order_by(Step.step) for one in (whole, broken)
            )
        ]
    assert steps[0] == steps[1]


def test_what_dies_between_its_bytes_and_their_names_changes_nothing(
    context: Context, create: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that dies before the commit leaves bytes without names; the next one does the step again."""
    job = create()
    work(context)

    class Dies(BaseException):
        """Stands in for kill -9: nothing in the runner may catch it."""

    real = leases.commit_step

    def dying(*arguments: object, **named: object) -> str:
        if named["step"] == 2:
            raise Dies
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "commit_step", dying)
    lease = claim(context)
    with pytest.raises(Dies):
        Run(context, lease, lambda: False).train()
    monkeypatch.undo()
    with context.db.transaction() as session:
        leases.abandon(session, lease=lease, back_off=0.0)
    work(context)
    assert read(context, job).status == "succeeded"
    with context.db.reading() as session:
        assert session.scalars(select(Step.step).order_by(Step.step)).all() == [0, 1, 2, 3]


def test_a_cancelled_job_gets_nothing_more(context: Context, create: MakeJob) -> None:
    """The step under way is refused at its commit."""
    job = create()
    work(context)
    lease = claim(context)
    with context.db.transaction() as session:
        jobs.cancel_job(session, project_id=job.project_id, job_id=job.id)
    with pytest.raises(LeaseLost):
        Run(context, lease, lambda: False).train()
    with context.db.reading() as session:
        assert session.scalars(select(Step)).all() == []


def test_a_pause_leaves_a_usable_checkpoint_and_resumes(context: Context, create: MakeJob) -> None:
    """Asked to pause, the trainer ends its step, keeps a snapshot and parks; resumed, the job succeeds."""
    job = create(valid=rows(2))
    work(context)
    asked = iter([False, True])

    def pause_after_the_first() -> bool:
        if next(asked, False):
            with context.db.transaction() as session:
                jobs.pause_job(session, project_id=job.project_id, job_id=job.id)
        return False

    work(context, pause_after_the_first)
    assert read(context, job).status == "paused"
    with context.db.reading() as session:
        page = checkpoints.list_checkpoints(session, job_id=job.id, limit=9)
    snapshot = page.rows[0]
    assert snapshot.step_number == 2
    assert (context.storage.path(snapshot.uri) / "adapter_config.json").is_file()
    with context.db.transaction() as session:
        jobs.resume_job(session, project_id=job.project_id, job_id=job.id)
    work(context)
    assert read(context, job).status == "succeeded"


@pytest.mark.parametrize(
    ("files_of", "code", "param", "words"),
    [
        ({"train": b"not json\n"}, "invalid_training_file", "training_file", "ine 1"),
        ({"train": b"[1]\n"}, "invalid_training_file", "training_file", "ine 1"),
        ({"train": b"\n"}, "invalid_n_examples", "training_file", "0 example"),
        ({"train": rows(3, messages=[])}, "invalid_training_file", "training_file", "messages"),
        (
            {"train": rows(3, messages=[{"role": "asistant", "content": "x"}])},
            "invalid_training_file",
            "training_file",
            "asistant",
        ),
        (
            {"valid": rows(3).replace(b"letter", b"leter")},
            "invalid_validation_file",
            "validation_file",
            "letter",
        ),
        ({"test": b"{}\n"}, "invalid_test_file", "test_file", "messages"),
    ],
)
def test_bad_data_fails_the_job_and_names_the_line(
    context: Context, create: MakeJob, files_of: dict[str, bytes], code: str, param: str, words: str
) -> None:
    """The job fails with code, param and a message; its webhook is written."""
    job = create(**files_of)
    work(context)
    failed = read(context, job)
    assert (failed.status, failed.error_code, failed.error_param) == ("failed", code, param)
    assert words in (failed.error_message or "")
    with context.db.reading() as session:
        assert session.scalars(select(Webhook.type)).all() == ["fine_tuning.job.failed"]


def test_a_prompt_without_room_fails_with_its_row(context: Context, create: MakeJob) -> None:
    """A prompt longer than the model's context is named, not cut."""
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 5000}], "letter": "a"}).encode()
    job = create(train=rows(3) + long + b"\n")
    work(context)
    work(context)
    failed = read(context, job)
    assert failed.status == "failed"
    assert failed.error_code == "invalid_training_file"
    assert "Example 4" in (failed.error_message or "")


def test_constrained_answers_follow_the_schema(context: Context, create: MakeJob) -> None:
    """With a response_format every answer that ended is JSON of that shape, from a model that knows none."""
    schema = {
        "type": "object",
        "properties": {"letter": {"type": "string", "enum": ["a", "b"]}},
        "required": ["letter"],
        "additionalProperties": False,
    }
    grader = {
        "type": "string_check",
        "input": "{{sample.output_json.letter}}",
        "reference": "{{item.letter}}",
        "operation": "eq",
    }
    answer_format = {"type": "json_schema", "json_schema": {"name": "letter", "schema": schema}}
    job = create(grader=grader, response_format=answer_format, hyperparameters={"max_completion_tokens": 40})
    work(context)
    work(context)
    assert read(context, job).status == "succeeded"
    with context.db.reading() as session:
        page = rollouts.list_rollouts(
            session, storage=context.storage, job_id=job.id, split="train", limit=100
        )
    ended = [row for row in page.rows if row["finish_reason"] == "stop"]
    assert ended
    assert {json.loads(row["completion"])["letter"] for row in ended} <= {"a", "b"}


def test_a_tuned_model_is_tuned_further(context: Context, create: MakeJob) -> None:
    """The second job begins where the first ended: same answers before its first step, then its own model."""
    first = create(test=rows(5), hyperparameters={"lora_rank": 2})
    work(context)
    work(context)
    tuned = read(context, first).fine_tuned_model
    second = create(test=rows(5), model=tuned, suffix="Again", hyperparameters={"lora_rank": None})
    work(context)
    work(context)
    done = read(context, second)
    assert (done.status, done.model) == ("succeeded", tuned)
    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith("ft:tiny:personal:again:")
    assert done.resolved is not None
    assert done.resolved["lora_rank"] == 2

    def answers(job: Job, step: int) -> list[str]:
        with context.db.reading() as session:
            page = rollouts.list_rollouts(
                session, storage=context.storage, job_id=job.id, step=step, split="test", limit=9
            )
        return [row["completion"] for row in page.rows]

    assert answers(second, 0) == answers(first, 3)
    assert adapter(context, second) != adapter(context, first)


def test_a_tuned_model_keeps_its_rank(context: Context, create: MakeJob) -> None:
    """Another rank is refused with the cure; a starting model that is gone is named."""
    first = create()
    work(context)
    work(context)
    tuned = read(context, first).fine_tuned_model
    wider = create(model=tuned, hyperparameters={"lora_rank": 8})
    work(context)
    work(context)
    assert read(context, wider).error_code == "invalid_hyperparameter"
    late = create(model=tuned, hyperparameters={"lora_rank": None})
    work(context)
    with context.db.transaction() as session:
        session.delete(session.get_one(Model, tuned))
    work(context)
    assert read(context, late).error_code == "model_not_available"

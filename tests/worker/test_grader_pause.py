"""A grader that fails pauses its job, teaches it nothing, and costs it nothing once the cause is gone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from app.core.context import Context
from app.core.tables import Event, Job, Rollout, Step
from app.graders.result import Grade
from app.services import jobs
from tests.worker.conftest import MakeJob, rows
from tests.worker.graders_at_fault import CRASHED, JUDGE_DOWN, Outage
from tests.worker.test_runner import adapter, read, work


def files_of_a_job() -> dict[str, bytes]:
    """Return three files whose items say which split they are."""
    return {
        "train": rows(12, where="train"),
        "valid": rows(3, where="valid"),
        "test": rows(4, where="test"),
    }


def resume(context: Context, job: Job) -> None:
    """Do what a person does when the cause is mended."""
    with context.db.transaction() as session:
        jobs.resume_job(session, project_id=job.project_id, job_id=job.id)


def errors(context: Context, job: Job) -> list[Event]:
    """Return a job's error events."""
    with context.db.reading() as session:
        query = select(Event).where(Event.job_id == job.id, Event.level == "error").order_by(Event.seq)
        return list(session.scalars(query))


def results(context: Context, job: Job) -> list[tuple[Any, ...]]:
    """Return what every committed step came to, without its times."""
    with context.db.reading() as session:
        found = session.scalars(select(Step).where(Step.job_id == job.id).order_by(Step.step)).all()
        kept = session.scalars(select(Rollout).where(Rollout.job_id == job.id).order_by(Rollout.number)).all()
    steps = [(row.step, row.metrics["scores"], row.metrics["tunesmith"]["loss"]) for row in found]
    graded = [
        (one.step, one.split, one.item_index, one.sample_index, one.reward, one.advantage) for one in kept
    ]
    return [*steps, *graded]


@pytest.mark.parametrize(
    ("failure", "where", "after", "last"),
    [
        (JUDGE_DOWN, "test", None, 0),
        (JUDGE_DOWN, "valid", None, 0),
        (JUDGE_DOWN, "train", 1, 1),
        (CRASHED, "train", 0, 0),
        (CRASHED, "valid", 1, 1),
        (CRASHED, "test", 2, 3),
    ],
    ids=["test-0", "valid-0", "train-2", "train-1", "valid-2", "test-3"],
)
def test_an_outage_pauses_the_job_and_changes_no_bit_of_its_result(
    context: Context,
    create: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    failure: Grade,
    where: str,
    after: int | None,
    last: int,
) -> None:
    """Broken from after a step on, in any split: paused at the last good step, resumed, the same adapter."""
    whole = create(**files_of_a_job())
    work(context)
    work(context)
    outage = Outage(failure, lambda item: item["where"] == where, on=after is None).install(monkeypatch)
    broken = create(**files_of_a_job())
    work(context)

    def break_later() -> bool:
        with context.db.reading() as session:
            outage.on = outage.on or session.get(Step, (broken.id, after)) is not None
        return False

    work(context, break_later)
    paused = read(context, broken)
    assert (paused.status, paused.step, paused.lease_owner) == ("paused", last, None)
    (event,) = errors(context, broken)
    assert event.data["split"] == where
    assert event.data["failed"] > 0.2 * event.data["answers"]
    assert event.data["samples"][0]["error"] in event.message
    assert "resume" in event.message
    with context.db.reading() as session:
        committed = session.scalars(select(Step.step).where(Step.job_id == broken.id)).all()
    assert max(committed, default=0) == last
    outage.on = False
    resume(context, broken)
    work(context)
    assert read(context, broken).status == "succeeded"
    assert adapter(context, broken) == adapter(context, whole)
    assert results(context, broken) == results(context, whole)
    assert len(errors(context, broken)) == 1


def test_a_resume_before_the_cause_is_gone_pauses_again(
    context: Context, create: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt is lost and no step is made."""
    Outage(JUDGE_DOWN).install(monkeypatch)
    job = create(**files_of_a_job())
    work(context)
    for times in (1, 2, 3):
        work(context)
        assert read(context, job).status == "paused"
        assert len(errors(context, job)) == times
        resume(context, job)
    assert read(context, job).step == 0


@pytest.mark.parametrize("policy", ["exclude", "zero"])
def test_a_formula_that_breaks_on_most_answers_pauses_under_either_policy(
    context: Context, create: MakeJob, policy: str
) -> None:
    """Nothing invented here: a wrong answer divides by zero, and a random model gives few right ones."""
    grader = {
        "type": "multi",
        "graders": {
            "right": {
                "type": "string_check",
                "input": "{{sample.output_text}}",
                "reference": "{{item.letter}}",
                "operation": "eq",
            }
        },
        "calculate_output": "1 / right",
    }
    job = create(grader=grader, grader_error_policy=policy)
    work(context)
    work(context)
    paused = read(context, job)
    assert (paused.status, paused.step) == ("paused", 0)
    (event,) = errors(context, job)
    assert "formula_parse_error" in event.data["errors"]
    assert "calculate_output" in event.data["samples"][0]["error"]


def test_the_event_shows_the_users_own_traceback(context: Context, create: MakeJob) -> None:
    """A Python grader with a slip in its third line, in the real sandbox."""
    source = "def grade(sample, item):\n    text = sample['output_text']\n    return item['lettr'] in text\n"
    job = create(grader={"type": "python", "name": "slip", "source": source})
    work(context)
    work(context)
    assert (read(context, job).status, read(context, job).step) == ("paused", 0)
    (event,) = errors(context, job)
    assert event.data["errors"] == {"python_grader_runtime_error": event.data["failed"]}
    assert "line 3, in grade" in event.message
    assert "KeyError: 'lettr'" in event.message


def test_without_a_sandbox_the_job_stops_and_says_why(context: Context, create: MakeJob) -> None:
    """Fail closed: where a grader could read the service's own data, none is run."""
    source = "def grade(sample, item):\n    return 1.0\n"
    job = create(grader={"type": "python", "name": "any", "source": source})
    work(context)
    settings = context.settings.model_copy(update={"grader_packages": context.settings.root.parent})
    work(replace(context, settings=settings))
    stopped = read(context, job)
    assert (stopped.status, stopped.step, stopped.error_code) == ("failed", 0, "grader_sandbox_unavailable")
    assert "Python graders can't run here" in (stopped.error_message or "")


def few(share_of_twelve: int) -> Callable[..., bytes]:
    """Return training rows of which so many in twelve can't be graded."""
    return lambda: rows(12 - share_of_twelve, where="train") + rows(share_of_twelve, where="broken")


@pytest.mark.parametrize(
    ("failure", "policy", "reward"),
    [
        (JUDGE_DOWN, "exclude", None),
        (JUDGE_DOWN, "zero", None),
        (CRASHED, "exclude", None),
        (CRASHED, "zero", 0.0),
    ],
)
def test_a_few_failures_are_borne_counted_and_worth_what_their_fault_says(
    context: Context,
    create: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    failure: Grade,
    policy: str,
    reward: float | None,
) -> None:
    """One in twelve: the job succeeds; a missing grade is no zero and takes no part."""
    Outage(failure, lambda item: item["where"] == "broken").install(monkeypatch)
    job = create(
        train=few(1)(),
        valid=rows(3, where="valid"),
        grader_error_policy=policy,
        hyperparameters={"batch_size": 12},
    )
    work(context)
    work(context)
    assert read(context, job).status == "succeeded"
    with context.db.reading() as session:
        (step,) = session.scalars(select(Step).where(Step.step == 1))
        hit = session.scalars(select(Rollout).where(Rollout.item_index == 11, Rollout.split == "train")).all()
    assert {one.reward for one in hit} == {reward}
    assert {one.advantage for one in hit} == {None if reward is None else 0.0}
    ours = step.metrics["tunesmith"]
    assert ours["grader_error_share"] == pytest.approx(1 / 12)
    assert sum(ours["grader_errors"].values()) == 4
    assert ours["graded"] == (44 if reward is None else 48)
    assert ours["bad_steps"] == 0
    assert not errors(context, job)


def test_three_bad_steps_in_a_row_pause_also_across_a_restart(
    context: Context, create: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in twelve is bearable twice. A new trainer knows of the two before; mended, the row is over."""
    outage = Outage(CRASHED, lambda item: item["where"] == "broken").install(monkeypatch)
    job = create(
        train=few(2)(),
        valid=rows(3, where="valid"),
        hyperparameters={"batch_size": 12, "n_epochs": 5, "eval_interval": 5},
    )
    work(context)
    commits = iter([False, False, True])
    work(context, lambda: next(commits, False))
    assert (read(context, job).status, read(context, job).step) == ("queued", 2)
    work(context)
    assert (read(context, job).status, read(context, job).step) == ("paused", 2)
    (event,) = errors(context, job)
    assert "3rd bad step in a row" in event.message
    outage.on = False
    resume(context, job)
    work(context)
    assert read(context, job).status == "succeeded"
    with context.db.reading() as session:
        found = session.scalars(select(Step).order_by(Step.step)).all()
    assert [row.metrics["tunesmith"]["bad_steps"] for row in found] == [0, 1, 2, 0, 0, 0]

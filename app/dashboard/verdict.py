"""The verdict in a sentence: is the tuned model better than its base, by how much, on how many items.

Words for what services.evaluations measured. Until the test file is scored a number is provisional.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.core.tables import Event, Job
from app.dashboard import format, series
from app.dashboard.job_contexts import Bar, Verdict
from app.services import evaluations, rollouts

KNOWN_JOBS = 64
_known: dict[str, tuple[object, dict[str, Any] | None]] = {}


def verdict(session: Session, job: Job, metrics: Sequence[Event]) -> Verdict:
    """Return the job's verdict card, whatever is known so far."""
    measured = _measured(session, job)
    return _nothing_yet(job, metrics) if measured is None else _card(job, measured)


def verdict_at(session: Session, job: Job, step: int | None) -> Verdict | None:
    """Return the verdict on a step's model, the newest without one, if base and model were compared."""
    measured = evaluations.evaluation(session, job=job, step=step)
    return None if measured is None else _card(job, measured)


def _card(job: Job, measured: Mapping[str, Any]) -> Verdict:
    n, is_provisional = measured["n"], bool(measured["provisional"])
    fixed, broken = measured["fixed"], measured["broken"]
    split = "validation" if measured["split"] == "valid" else "test"
    detail = f"{fixed} fixed and {broken} broken of {format.plural(n, 'item')}."
    if is_provisional:
        last = (
            "The test file gives the verdict at the end."
            if job.test_file
            else ("Validation also chose the checkpoints: a test file would give a real verdict.")
        )
        detail = f"{detail} {last}"
    return Verdict(
        label=f"Mean reward, {split} file, {format.plural(n, 'item')}",
        base=format.percent(measured["base"]["mean"]),
        tuned=format.percent(measured["tuned"]["mean"]),
        sentence=sentence(measured["difference"]),
        detail=detail,
        is_provisional=is_provisional,
        bars=(_bar("Base", measured["base"], False, 8), _bar("This run", measured["tuned"], True, 40)),
    )


def _measured(session: Session, job: Job) -> dict[str, Any] | None:
    """Return the evaluation, computed once for the batches it rests on: a live page asks at every step."""
    rested = tuple(
        (batch.split, batch.step, batch.created_at)
        for batch in rollouts.list_batches(session, job_id=job.id)
        if batch.split != "train"
    )
    known = _known.get(job.id)
    if known is not None and known[0] == rested:
        return known[1]
    measured = evaluations.evaluation(session, job=job)
    while len(_known) >= KNOWN_JOBS:
        _known.pop(next(iter(_known)), None)
    _known[job.id] = (rested, measured)
    return measured


def sentence(difference: Mapping[str, Any]) -> str:
    """Say what a paired difference and its interval mean."""
    low, high = difference["ci95"]
    told = f"{format.points(difference['mean'])} points, 95% CI {format.points(low)} to {format.points(high)}"
    if low > 0:
        return f"Better than the base model: {told}."
    if high < 0:
        return f"Worse than the base model: {told}."
    return f"No clear difference from the base model: {told}."


def _bar(label: str, measured: Mapping[str, Any], is_tuned: bool, y: int) -> Bar:
    low, high = measured["ci95"]
    return Bar(label, measured["mean"], max(low, 0.0), min(high, 1.0), is_tuned, y)


def _nothing_yet(job: Job, metrics: Sequence[Event]) -> Verdict:
    base = next((p.valid for p in series.points_of(metrics) if p.step == 0), None)
    if job.status in ("failed", "cancelled"):
        words = "No verdict: the job ended before base and tuned model were compared."
    elif base is not None:
        words = f"No verdict yet. The base model scores {format.percent(base)} on the validation file."
    elif job.status == "running":
        words = "No verdict yet. The base model is being measured."
    else:
        words = "No verdict yet. It starts with the base model's score, once the job runs."
    interval = (job.resolved or {}).get("eval_interval")
    detail = ""
    if base is not None and interval and job.status == "running":
        detail = f"The first check comes at step {min(int(interval), job.total_steps or int(interval))}."
    return Verdict("Verdict", None, None, words, detail, False, ())

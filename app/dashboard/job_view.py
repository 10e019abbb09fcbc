"""One job as its page shows it: chip, verdict, chart, checkpoints, events, facts, configuration.

Reads services, decides nothing about jobs. Called by the jobs' routes and, with the same result, by the
live stream, so that a page and its updates cannot disagree.
"""

import json
from collections.abc import Sequence
from typing import cast

from sqlalchemy.orm import Session

from app.core import clock
from app.core.status import TERMINAL, JobStatus, may
from app.core.tables import Checkpoint, Event, Job
from app.dashboard import addresses, format, series
from app.dashboard.contexts import Chip
from app.dashboard.job_contexts import (
    CheckpointRow,
    EventRow,
    Failure,
    JobRow,
    JobView,
    LiveView,
)
from app.dashboard.job_facts import curl, facts_of, graders_of, request_body, settings_of
from app.dashboard.verdict import verdict
from app.services import checkpoints, events, jobs
from app.services.models import base_of

RECENT_EVENTS = 12
EVENTS_PAGE = 50
_TONES = {"running": "info", "pausing": "violet", "paused": "violet", "succeeded": "good", "failed": "bad"}
_SHAPES = {"validating_files": "hollow", "queued": "hollow", "cancelled": "struck"}
_ADVICE = {
    "invalid_training_file": "Mend the lines it names, upload the file again and create a new job with it.",
    "invalid_validation_file": "Mend the lines it names, upload the file again and create a new job with it.",
    "invalid_test_file": "Mend the lines it names, upload the file again and create a new job with it.",
    "invalid_n_examples": "Upload a file with a fitting number of examples and create a new job with it.",
    "model_too_large": "Create a job with a smaller base model, or give a worker a machine with more memory.",
    "out_of_memory": "Create a job with a smaller batch size, fewer samples per prompt or shorter answers.",
    "numerical_instability": "Create a job with a lower learning rate multiplier.",
}
_DEFAULT_ADVICE = "The events below say what led to it. Checkpoints that were kept stay usable."


def chip(job: Job, *, short: bool = False) -> Chip:
    """Return the job's status in words, with step and time left where they mean something."""
    tone, shape = _TONES.get(job.status, "neutral"), _SHAPES.get(job.status, "solid")
    return Chip(job.status, _status_words(job, short), tone, shape)


def _status_words(job: Job, short: bool) -> str:
    step = f"step {job.step} of {job.total_steps}" if job.total_steps else ""
    if job.status == "running":
        if not job.total_steps:
            return "Running" if short else "Running · starting"
        if short:
            return f"Running {job.step} / {job.total_steps}"
        left = None if job.estimated_finish is None else job.estimated_finish - clock.now()
        told = f" · {format.about(max(left, 0.0))} left" if left is not None else ""
        return f"Running · {step}{told}"
    if job.status == "failed":
        where = {
            "training_file": "in training file",
            "validation_file": "in validation file",
            "test_file": "in test file",
        }
        stage = where.get(job.error_param or "", f"at step {job.step}" if job.step else "before training")
        return f"Failed {stage}"
    if job.status == "paused" and job.step:
        return f"Paused at {job.step}" if short else f"Paused · {step}"
    words = {"validating_files": "Validating files", "pausing": "Pausing after this step"}
    return words.get(job.status, job.status.capitalize())


def name_of(job: Job) -> str:
    """Return what a person calls the job: model and suffix."""
    return f"{job.model} : {job.suffix}" if job.suffix else job.model


def row(job: Job, curve: Sequence[tuple[int, float]]) -> JobRow:
    """Return the job as a row of the list; `curve` is its validation rewards by step."""
    line, end = series.spark(curve)
    return JobRow(job.id, job.model, job.suffix, chip(job, short=True), job.created_at, line, end)


def live_view(session: Session, job: Job, *, tab: str) -> LiveView:
    """Return what the stream re-renders of a job."""
    metrics = events.metrics_events(session, job_id=job.id)
    curve = [(p.step, p.valid) for p in series.points_of(metrics) if p.valid is not None]
    return LiveView(view(session, job, tab=tab, metrics=metrics), row(job, curve))


def view(
    session: Session,
    job: Job,
    *,
    tab: str,
    metrics: Sequence[Event] | None = None,
    events_after: str | None = None,
) -> JobView:
    """Return everything the job's page shows under `tab`."""
    if metrics is None:
        metrics = events.metrics_events(session, job_id=job.id)
    limit = EVENTS_PAGE if tab == "events" else RECENT_EVENTS
    timeline = events.list_events(session, job_id=job.id, limit=limit, after=events_after)
    kept = checkpoints.list_checkpoints(session, job_id=job.id, limit=20).rows
    request = request_body(job)
    status = cast(JobStatus, job.status)
    return JobView(
        id=job.id,
        name=name_of(job),
        chip=chip(job),
        tab=tab,
        is_over=status in TERMINAL,
        can_pause=may("pause", status),
        can_resume=may("resume", status),
        can_cancel=may("cancel", status),
        pause_note=(
            "The current step is finished first. A checkpoint is kept, which you can use and resume from."
        ),
        cancel_note=_cancel_note(job, kept),
        seq=job.event_seq,
        note=_note(session, job),
        failure=_failure(job),
        verdict=verdict(session, job, metrics),
        chart=series.chart(series.points_of(metrics), waiting=_waiting(job)),
        meters=series.meters(metrics),
        latest=series.latest(metrics),
        checkpoints=_checkpoint_rows(job, kept),
        events=tuple(map(event_row, timeline.rows)),
        more_events=timeline.rows[-1].id if timeline.has_more else None,
        facts=facts_of(session, job),
        graders=graders_of(session, job),
        settings=settings_of(job),
        request_json=json.dumps(request, indent=2, ensure_ascii=False),
        curl=curl(request),
        playground=_playground(job, job.fine_tuned_model),
    )


def event_row(event: Event) -> EventRow:
    """Return an event as a line of the timeline."""
    return EventRow(event.id, event.seq, event.type, event.level, event.message, event.created_at)


def _cancel_note(job: Job, kept: Sequence[Checkpoint]) -> str:
    if job.step == 0:
        return "It has not trained yet: nothing is lost. A cancelled job can't be resumed."
    done = f"{job.step} of {job.total_steps} steps are done. A cancelled job can't be resumed"
    if not kept:
        return f"{done}, and it has kept no checkpoint yet."
    return f"{done}; its {format.plural(len(kept), 'checkpoint')} stay usable."


def _note(session: Session, job: Job) -> str | None:
    if job.status == "queued":
        ahead = jobs.queue_position(session, job=job)
        return f"{format.plural(ahead, 'job')} ahead of it in the queue." if ahead else "Next in the queue."
    if job.status == "paused":
        return "Paused. Resume it to go on from its last checkpoint; the events say why it paused."
    return None


def _failure(job: Job) -> Failure | None:
    if job.status != "failed":
        return None
    code = job.error_code or "server_error"
    return Failure(
        code,
        job.error_message or "No reason was recorded.",
        job.error_param,
        _ADVICE.get(code, _DEFAULT_ADVICE),
    )


def _waiting(job: Job) -> str:
    if job.status in TERMINAL:
        return "This job ended before its first step."
    if job.status == "validating_files":
        return "The files are being checked. The first point comes with the base model's score."
    if job.status in ("queued", "paused"):
        return "Waiting for a worker. The first point comes with the base model's score."
    return "Measuring the base model. Its score is the first point and the dashed line."


def _playground(job: Job, model_id: str | None) -> str | None:
    if model_id is None:
        return None
    return addresses.playground(model_id, compare=base_of(job.model), job_id=job.id)


def _checkpoint_rows(job: Job, kept: Sequence[Checkpoint]) -> tuple[CheckpointRow, ...]:
    ranked = sorted(
        (row for row in kept if row.valid_reward_mean is not None),
        key=lambda row: (row.valid_reward_mean or 0.0, row.step_number),
        reverse=True,
    )
    why = {row.id: f"{_ordinal(place)} validation reward" for place, row in enumerate(ranked)}
    return tuple(
        CheckpointRow(
            row.id,
            row.model_id,
            row.step_number,
            row.valid_reward_mean,
            series.number(row.metrics, "train_mean_reward"),
            series.number(row.metrics, "completion_tokens_mean"),
            why.get(row.id, "Last step"),
            row.created_at,
            addresses.model(row.model_id),
            addresses.playground(row.model_id, compare=base_of(job.model), job_id=job.id),
        )
        for row in kept
    )


def _ordinal(place: int) -> str:
    return ("Best", "2nd best", "3rd best")[place] if place < 3 else f"{place + 1}th best"

"""The fine-tuning job object: every key present, extension keys only where the request set them.

Source: https://platform.openai.com/docs/api-reference/fine-tuning/object
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.core.clock import seconds
from app.core.tables import Job


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobUsage(BaseModel):
    """What a job has used so far."""

    training_time_seconds: float
    model_graders_token_usage: dict[str, Any]


class JobObject(BaseModel):
    """A fine-tuning job as its owner sees it."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    # null, not {}: a client's `if job.error` takes an empty object for a failure.
    error: JobError | None
    estimated_finish: int | None
    eval_id: None = None
    fine_tuned_model: str | None
    finished_at: int | None
    # Belongs to supervised jobs.
    hyperparameters: None = None
    integrations: list[Any] = Field(default_factory=list)
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    shared_with_openai: Literal[False] = False
    status: str
    test_file: str | None = Field(exclude_if=lambda value: value is None)
    # Stays null for reinforcement jobs.
    trained_tokens: None = None
    training_file: str
    usage_metrics: JobUsage | None
    user_provided_suffix: str | None
    validation_file: str | None


def job_object(job: Job, *, organization: str) -> JobObject:
    """Return the wire form of a job."""
    return JobObject(
        id=job.id,
        created_at=seconds(job.created_at),
        error=_error(job),
        estimated_finish=_seconds(job.estimated_finish if job.status == "running" else None),
        fine_tuned_model=job.fine_tuned_model,
        finished_at=_seconds(job.finished_at),
        metadata=job.labels,
        method=_method(job),
        model=job.model,
        organization_id=f"org-{organization}",
        result_files=[] if job.result_file is None else [job.result_file],
        seed=job.seed,
        status=job.status,
        test_file=job.test_file,
        training_file=job.training_file,
        usage_metrics=_usage(job),
        user_provided_suffix=job.suffix,
        validation_file=job.validation_file,
    )


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else seconds(moment)


def _error(job: Job) -> JobError | None:
    if job.error_code is None:
        return None
    return JobError(code=job.error_code, message=job.error_message or "", param=job.error_param)


def _usage(job: Job) -> JobUsage | None:
    if job.started_at is None:
        return None
    return JobUsage(
        training_time_seconds=round(job.training_seconds, 3), model_graders_token_usage=job.grader_tokens
    )


def _method(job: Job) -> dict[str, Any]:
    """Return the method as requested, with each `auto` as its number once the job has run."""
    kind = job.method["type"]
    details = dict(job.method[kind])
    resolved = job.resolved or {}
    details["hyperparameters"] = {
        name: resolved.get(name, value) for name, value in details["hyperparameters"].items()
    }
    return {"type": kind, kind: details}

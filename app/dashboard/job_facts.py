"""What stands fixed about a job: its facts, its hyperparameters, the request that made it, as JSON and curl.

What changes while it runs is job_view.py's, which calls this.
"""

import json
from typing import Any

from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.tables import Job
from app.dashboard import format
from app.dashboard.contexts import Fact
from app.dashboard.job_contexts import Setting
from app.services import files, saved_graders


def request_body(job: Job) -> dict[str, Any]:
    """Return the request that would create this job again."""
    inner = job.method["reinforcement"]
    asked = {
        key: value
        for key, value in inner["hyperparameters"].items()
        if value != "auto" and (key, value) != ("reasoning_effort", "default")
    }
    method = {"grader": inner["grader"], "response_format": inner.get("response_format")}
    method |= {"hyperparameters": asked, "grader_error_policy": inner.get("grader_error_policy")}
    body = {
        "model": job.model,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "test_file": job.test_file,
        "suffix": job.suffix,
        "seed": job.seed,
        "metadata": job.labels,
        "method": {
            "type": "reinforcement",
            "reinforcement": {key: value for key, value in method.items() if value},
        },
    }
    return {key: value for key, value in body.items() if value is not None}


def curl(request: dict[str, Any]) -> str:
    """Return the request as a shell command; the key and the address stay variables."""
    text = json.dumps(request, indent=2, ensure_ascii=False).replace("'", "'\\''")
    return (
        'curl "$OPENAI_BASE_URL/fine_tuning/jobs" \\\n'
        '  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d '{text}'"
    )


def facts_of(session: Session, job: Job) -> tuple[Fact, ...]:
    """Return what is fixed about the job: ids, models, files, times."""
    model = job.fine_tuned_model
    output = Fact("Output model", model or "Named when the job succeeds", bool(model), copies=bool(model))
    facts = [Fact("Job ID", job.id, mono=True, copies=True), Fact("Base model", job.model, mono=True), output]
    facts.extend(graders_of(session, job))
    for key, label in (
        ("training_file", "Training"),
        ("validation_file", "Validation"),
        ("test_file", "Test"),
    ):
        facts.append(_file(session, job, getattr(job, key), f"{label} file", key))
    facts.append(Fact("Seed", str(job.seed)))
    facts.append(Fact("Created", format.absolute(job.created_at), moment=job.created_at))
    if job.finished_at is not None:
        facts.append(Fact("Finished", format.absolute(job.finished_at), moment=job.finished_at))
    if job.training_seconds:
        facts.append(Fact("Training time", format.duration(job.training_seconds)))
    if job.result_file:
        facts.append(_file(session, job, job.result_file, "Result file", "result_file"))
    return tuple(facts)


def _grader(job: Job) -> Fact:
    grader = job.method["reinforcement"]["grader"]
    if grader["type"] == "multi":
        return Fact("Grader", f"{grader['calculate_output']} ({', '.join(grader['graders'])})", mono=True)
    how = grader.get("operation") or grader.get("evaluation_metric") or ""
    return Fact("Grader", f"{grader['type']} {how}".strip(), mono=True)


def graders_of(session: Session, job: Job) -> tuple[Fact, ...]:
    """Return what the job grades with, and which saved versions it recorded, each by where it stands."""
    facts = [_grader(job)]
    for param, recorded in (job.saved_graders or {}).items():
        part = param.removeprefix("method.reinforcement.grader").removeprefix(".graders.")
        label, version = f"Saved as {part}" if part else "Saved grader", f"version {recorded['version']}"
        try:
            saved = saved_graders.get_grader(session, project_id=job.project_id, grader_id=recorded["id"])
        except NotFound:
            facts.append(Fact(label, f"{recorded['id']}, {version} (deleted)", mono=True))
        else:
            href = f"/graders/{saved.id}?v={recorded['version']}"
            facts.append(Fact(label, f"{saved.name}, {version}", href=href))
    return tuple(facts)


def _file(session: Session, job: Job, file_id: str | None, label: str, key: str) -> Fact:
    if file_id is None:
        held = (
            "A tenth of the training file, held out" if key == "validation_file" else "None: no final verdict"
        )
        return Fact(label, held)
    try:
        file = files.get_file(session, project_id=job.project_id, file_id=file_id)
    except NotFound:
        return Fact(label, f"{file_id} (deleted)", mono=True)
    return Fact(label, file.filename, href=f"/storage/files/{file.id}")


def settings_of(job: Job) -> tuple[Setting, ...]:
    """Return every hyperparameter as it was asked for and as the number it became."""
    asked = job.method["reinforcement"]["hyperparameters"]
    resolved = job.resolved or {}
    names = [*asked, *(name for name in resolved if name not in asked)]
    return tuple(
        Setting(name, _value(asked.get(name, "auto")), _value(resolved.get(name, asked.get(name, "auto"))))
        for name in names
    )


def _value(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return format.compact(value)

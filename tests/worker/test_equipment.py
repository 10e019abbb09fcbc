"""A job with a Python grader: it runs in the sandbox and says so, or it does not run at all."""

from typing import Any

import pytest
from sqlalchemy import select

from app.core.context import Context
from app.core.errors import InvalidRequest
from app.core.tables import Event, Job
from app.graders.sandbox import landlock
from app.graders.sandbox.level import choose
from app.services import rollouts
from tests.worker.conftest import MakeJob, rows
from tests.worker.test_runner import read, work

SOURCE = """
def grade(sample, item):
    return sample["output_text"].count(item["letter"]) / 8
"""


@pytest.fixture(autouse=True)
def _fresh_choice() -> Any:
    choose.cache_clear()
    yield
    choose.cache_clear()


def python(source: str = SOURCE) -> dict[str, Any]:
    """Return a grader of the wire."""
    return {"type": "python", "name": "counts", "source": source}


def said(context: Context, job: Job) -> list[tuple[str, str]]:
    """Return the job's messages with their levels."""
    with context.db.reading() as session:
        rows = session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.seq))
        return [(row.level, row.message) for row in rows]


def test_a_job_learns_from_a_python_grader_and_names_its_sandbox(context: Context, create: MakeJob) -> None:
    job = create(grader=python(), valid=rows(3))
    work(context)
    work(context)
    assert (read(context, job).status, read(context, job).error_message) == ("succeeded", None)
    notes = [text for level, text in said(context, job) if text.startswith("Python graders run")]
    assert len(notes) == 1
    assert "in the sandbox, level " in notes[0]
    with context.db.reading() as session:
        batches = rollouts.list_batches(session, job_id=job.id)
    assert sum(batch.count for batch in batches) > 0


def test_a_missing_package_is_told_before_the_first_step(context: Context, create: MakeJob) -> None:
    """The import stands in a branch that is never taken, so the job itself goes well."""
    source = SOURCE + "\n\ndef never():\n    import torch.nn\n"
    job = create(grader=python(source))
    work(context)
    work(context)
    assert read(context, job).status == "succeeded"
    told = [text for level, text in said(context, job) if level == "warn" and "torch.nn" in text]
    assert told == [
        "The grader 'counts' imports torch.nn, which graders here do not have. "
        "See 'Packages for graders' in docs/operations.md."
    ]


def test_a_source_that_is_no_grader_is_refused_with_its_line(create: MakeJob) -> None:
    with pytest.raises(InvalidRequest) as refused:
        create(grader=python("def grade(sample, item)\n    return 1\n"))
    assert refused.value.param == "method.reinforcement.grader.source"
    assert 'File "grader.py", line 1' in refused.value.message


def test_without_a_sandbox_the_job_fails_closed_and_says_what_to_do(
    context: Context, create: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a source that would have been refused is not looked at without a sandbox."""
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    job = create(grader=python("this is no Python"))
    work(context)
    work(context)
    done = read(context, job)
    assert (done.status, done.step, done.error_code) == ("failed", 0, "grader_sandbox_unavailable")
    assert "Use Linux 5.13 or newer" in (done.error_message or "")


def test_a_source_only_the_trainer_could_read_fails_the_job_with_its_line(
    context: Context, create: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The web process had no sandbox when the job was made."""
    with monkeypatch.context() as patch:
        patch.setattr(landlock, "abi", lambda: 0)
        job = create(grader=python("def grade(sample, item)\n    return 1\n"))
    work(context)
    work(context)
    done = read(context, job)
    assert (done.status, done.error_code) == ("failed", "invalid_grader")
    assert done.error_param == "method.reinforcement.grader.source"
    assert "line 1" in (done.error_message or "")

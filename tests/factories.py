"""Rows for tests: each function inserts one believable row and returns it."""

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.core import clock
from app.core.ids import new_id
from app.core.storage import Storage
from app.core.tables import File, Job, Model, Project
from app.services import files

_moments = itertools.count(1)

GRADER = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def moment() -> float:
    """Return a time later than every one before, so that lists have an order."""
    return clock.now() + next(_moments) / 1000


def make_project(session: Session, name: str = "Default project") -> Project:
    """Insert a project."""
    project = Project(id=new_id("project"), name=name, created_at=moment())
    session.add(project)
    session.flush()
    return project


def make_base_model(session: Session, model_id: str = "tiny", **details: Any) -> Model:
    """Insert a base model, or return the one there is."""
    model = session.get(Model, model_id)
    if model is None:
        facts = {"parameters": 100_000, "context": 512, "licence": "apache-2.0"} | details
        model = Model(id=model_id, kind="base", base_model=model_id, details=facts, created_at=moment())
        session.add(model)
        session.flush()
    return model


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as a JSONL file's bytes."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def question(text: str, answer: str) -> dict[str, Any]:
    """Return a dataset row with one user message."""
    return {"messages": [{"role": "user", "content": text}], "answer": answer}


def make_file(
    session: Session,
    project: Project,
    storage: Storage | None = None,
    *,
    data: bytes | None = None,
    filename: str = "train.jsonl",
    purpose: str = "fine-tune",
) -> File:
    """Insert a file; its bytes exist when `storage` is given."""
    if data is None:
        data = jsonl(question(f"Question {n}?", str(n)) for n in range(12))
    if storage is not None:
        stored = files.store_upload(storage, project_id=project.id, chunks=[data])
        return files.create_file(session, stored=stored, filename=filename, purpose=purpose)
    file = File(
        id=new_id("file"),
        project_id=project.id,
        filename=filename,
        purpose=purpose,
        bytes=len(data),
        sha256="0" * 64,
        status="processed",
        created_at=moment(),
    )
    session.add(file)
    session.flush()
    return file


def method(grader: Mapping[str, Any] = GRADER, **hyperparameters: Any) -> dict[str, Any]:
    """Return the `method` of a request."""
    return {
        "type": "reinforcement",
        "reinforcement": {"grader": dict(grader), "hyperparameters": hyperparameters},
    }


def make_job(session: Session, project: Project, **values: Any) -> Job:
    """Insert a job as creation leaves it, with `values` put over it."""
    make_base_model(session)
    stored_method = method()
    stored_method["reinforcement"]["response_format"] = None
    job = Job(
        **{
            "id": new_id("job"),
            "project_id": project.id,
            "status": "validating_files",
            "model": "tiny",
            "seed": 7,
            "training_file": "file-train",
            "method": stored_method,
            "created_at": moment(),
        }
        | values
    )
    session.add(job)
    session.flush()
    return job

"""A job ready to be worked on: a tiny model in the store, files in storage, rows in the database."""

from collections.abc import Callable
from typing import Any

import pytest

from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Job
from app.services import jobs, models, projects
from tests.factories import jsonl, make_file, question
from tests.tiny_model import build_tiny_model

MakeJob = Callable[..., Job]
# A random model says "a" now and then; saying it is what is taught.
GRADER = {
    "type": "string_check",
    "name": "says a",
    "input": "{{sample.output_text}}",
    "reference": "{{item.letter}}",
    "operation": "like",
}


def rows(count: int, **fields: object) -> bytes:
    """Return a file of `count` questions that all want the letter a."""
    return jsonl(question(f"Say {n}", "") | {"letter": "a"} | fields for n in range(count))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """One thread a trainer: with more, they would wait for each other at every tiny product."""
    return settings.model_copy(update={"threads": 1})


@pytest.fixture
def create(context: Context) -> MakeJob:
    """Create a job through the service: `create(train=…, valid=…, test=…, **body)`."""
    build_tiny_model(context.settings.models / "tiny")
    with context.db.transaction() as session:
        details = {"parameters": 100_000, "context": 4096}
        models.register_base_models(session, found={"tiny": details})

    def make(
        *,
        train: bytes | None = None,
        valid: bytes | None = None,
        test: bytes | None = None,
        grader: dict[str, Any] = GRADER,
        response_format: dict[str, Any] | None = None,
        hyperparameters: dict[str, Any] | None = None,
        grader_error_policy: str = "exclude",
        **body: Any,
    ) -> Job:
        numbers = {"batch_size": 4, "samples_per_prompt": 4, "max_completion_tokens": 8, "n_epochs": 1}
        numbers |= {"lora_rank": 4, "eval_interval": 2, "eval_samples": 1} | (hyperparameters or {})
        inner = {"grader": grader, "hyperparameters": numbers, "response_format": response_format}
        inner["grader_error_policy"] = grader_error_policy
        method = {"type": "reinforcement", "reinforcement": inner}
        jobs.check_sources(settings=context.settings, body={"method": method})
        with context.db.transaction() as session:
            project = projects.default_project(session)
            given = {
                "training_file": rows(12) if train is None else train,
                "validation_file": valid,
                "test_file": test,
            }
            ids = {
                key: make_file(session, project, context.storage, data=data).id
                for key, data in given.items()
                if data is not None
            }
            request = {"model": "tiny", "seed": 11, "method": method} | ids | body
            return jobs.create_job(session, settings=context.settings, project_id=project.id, body=request)

    return make

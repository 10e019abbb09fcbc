"""Job creation checks everything it can at once; what it refuses leaves no row."""

from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.db import Database
from app.core.errors import InvalidRequest, NotFound
from app.core.settings import Settings
from app.core.tables import Event, Job
from app.services import jobs
from tests.factories import GRADER, make_base_model, make_file, make_job, make_project, method

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def create(database: Database, settings: Settings | None = None, **changes: Any) -> Job:
    """Create a job whose body is good but for `changes`; None takes a key out."""
    with database.transaction() as session:
        project = make_project(session)
        make_base_model(session)
        file = make_file(session, project)
        body = {"model": "tiny", "training_file": file.id, "method": method()} | changes
        body = {key: value for key, value in body.items() if value is not ...}
        return jobs.create_job(session, settings=settings or Settings(), project_id=project.id, body=body)


def test_a_job_waits_for_validation(database: Database) -> None:
    """The row holds the request with every auto, a seed, and the first event."""
    job = create(database, suffix="Order Numbers", metadata={"team": "support"})
    assert (job.status, job.model, job.lease_owner) == ("validating_files", "tiny", None)
    assert 0 <= job.seed < 2**31
    inner = job.method["reinforcement"]
    assert inner["hyperparameters"] == {
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        "n_epochs": "auto",
        "eval_interval": "auto",
        "eval_samples": "auto",
        "compute_multiplier": "auto",
        "reasoning_effort": "default",
    }
    with database.reading() as session:
        assert session.scalars(select(Event.message)).all() == [f"Created fine-tuning job: {job.id}"]


@pytest.mark.parametrize(
    ("shape"),
    [
        {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "name": "a", "strict": True, "schema": SCHEMA},
    ],
)
def test_both_response_format_shapes(database: Database, shape: dict[str, Any]) -> None:
    """The Chat Completions and the flat Responses shape become one."""
    body = method()
    body["reinforcement"]["response_format"] = shape
    job = create(database, method=body)
    assert job.method["reinforcement"]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
    }


def test_extension_keys_are_kept_only_if_set(database: Database) -> None:
    """`samples_per_prompt` is echoed when asked for, `lora_rank` not when left out."""
    job = create(database, method=method(samples_per_prompt=4, kl_beta=None))
    hyperparameters = job.method["reinforcement"]["hyperparameters"]
    assert hyperparameters["samples_per_prompt"] == 4
    assert not {"lora_rank", "kl_beta"} & hyperparameters.keys()


def test_an_alias_is_named_in_the_first_event(database: Database) -> None:
    """A hosted model's name maps to a base model here; the job says so first, as a warning."""
    settings = Settings(model_aliases={"o4-mini-2025-04-16": "tiny"})
    job = create(database, settings, model="o4-mini-2025-04-16")
    assert job.model == "tiny"
    with database.reading() as session:
        first = session.scalars(select(Event).order_by(Event.seq)).first()
    assert first is not None
    assert first.level == "warn"
    assert "o4-mini-2025-04-16" in first.message
    assert "tiny" in first.message


def wrong_method(**inner: Any) -> dict[str, Any]:
    """Return a method whose reinforcement part has `inner` put over it."""
    body = method()
    body["reinforcement"] |= inner
    return body


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": ...}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"model": "gpt-x"}, "model", "model_not_available"),
        ({"model": "ft:tiny:personal::abcdefgh"}, "model", "model_not_available"),
        ({"training_file": ...}, "training_file", "missing_required_parameter"),
        ({"training_file": "file-none"}, "training_file", "invalid_value"),
        ({"validation_file": "file-none"}, "validation_file", "invalid_value"),
        ({"test_file": 1}, "test_file", "invalid_type"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"method": ...}, "method", "unsupported_value"),
        ({"method": {"type": "supervised"}}, "method.type", "unsupported_value"),
        ({"method": {"type": "dpo"}}, "method.type", "unsupported_value"),
        ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
        ({"method": {}}, "method.type", "missing_required_parameter"),
        ({"method": "rft"}, "method", "invalid_type"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement", "missing_required_parameter"),
        ({"method": wrong_method(grader=None)}, "method.reinforcement.grader", "missing_required_parameter"),
        ({"method": wrong_method(foo=1)}, "method.reinforcement.foo", "unknown_parameter"),
        (
            {"method": wrong_method(grader=GRADER | {"operation": "is"})},
            "method.reinforcement.grader.operation",
            "invalid_value",
        ),
        (
            {"method": wrong_method(grader=GRADER | {"reference": "{{thing.answer}}"})},
            "method.reinforcement.grader.reference",
            "invalid_value",
        ),
        (
            {"method": wrong_method(grader_error_policy="ignore")},
            "method.reinforcement.grader_error_policy",
            "invalid_value",
        ),
        (
            {"method": wrong_method(response_format={"type": "xml"})},
            "method.reinforcement.response_format.type",
            "invalid_value",
        ),
        (
            {"method": wrong_method(response_format={"type": "json_schema"})},
            "method.reinforcement.response_format.schema",
            "missing_required_parameter",
        ),
        (
            {"method": wrong_method(response_format={"type": "json_schema", "schema": {"type": "thing"}})},
            "method.reinforcement.response_format.schema",
            "invalid_value",
        ),
        ({"hyperparameters": {"n_epochs": 2}}, "hyperparameters", "unsupported_value"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "unsupported_value"),
        ({"suffix": ""}, "suffix", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"suffix": 4}, "suffix", "invalid_type"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**31}, "seed", "invalid_value"),
        ({"seed": True}, "seed", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65, "invalid_value"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "invalid_value"),
    ],
)
def test_bad_parameters_are_named(database: Database, changes: dict[str, Any], param: str, code: str) -> None:
    """Each mistake is a 400 with its `param` and `code`, and no job is left."""
    with pytest.raises(InvalidRequest) as refusal:
        create(database, **changes)
    assert (refusal.value.param, refusal.value.code) == (param, code)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("batch_size", 0, "invalid_value"),
        ("batch_size", 257, "invalid_value"),
        ("batch_size", 2.5, "invalid_type"),
        ("batch_size", "many", "invalid_type"),
        ("n_epochs", 51, "invalid_value"),
        ("learning_rate_multiplier", 0, "invalid_value"),
        ("compute_multiplier", 11, "invalid_value"),
        ("eval_interval", 0, "invalid_value"),
        ("eval_samples", True, "invalid_type"),
        ("samples_per_prompt", 1, "invalid_value"),
        ("temperature", 3, "invalid_value"),
        ("reasoning_effort", "extreme", "invalid_value"),
        ("foo", 1, "unknown_parameter"),
    ],
)
def test_bad_hyperparameters_are_named(database: Database, name: str, value: object, code: str) -> None:
    """A hyperparameter out of its range or type is refused under its full path."""
    with pytest.raises(InvalidRequest) as refusal:
        create(database, method=method(**{name: value}))
    assert refusal.value.param == f"method.reinforcement.hyperparameters.{name}"
    assert refusal.value.code == code


def test_a_file_of_another_purpose_is_refused(database: Database) -> None:
    """Only files uploaded for fine-tuning train."""
    with database.transaction() as session:
        project = make_project(session)
        make_base_model(session)
        file = make_file(session, project, purpose="user_data")
        body = {"model": "tiny", "training_file": file.id, "method": method()}
        with pytest.raises(InvalidRequest, match="purpose 'user_data'") as refusal:
            jobs.create_job(session, settings=Settings(), project_id=project.id, body=body)
    assert refusal.value.param == "training_file"


def test_what_is_not_yours_does_not_exist(database: Database) -> None:
    """Another project's job is a 404, with OpenAI's code."""
    with database.transaction() as session:
        mine, other = make_project(session), make_project(session)
        job = make_job(session, other)
    with database.reading() as session, pytest.raises(NotFound) as refusal:
        jobs.get_job(session, project_id=mine.id, job_id=job.id)
    assert (refusal.value.code, refusal.value.param) == ("fine_tune_not_found", "fine_tune_id")


def test_lists_are_newest_first_and_page_on(database: Database) -> None:
    """Pages join without gap or repeat; metadata filters choose."""
    with database.transaction() as session:
        project = make_project(session)
        made = [make_job(session, project, labels={"n": str(n % 2)} if n else None) for n in range(5)]
    with database.reading() as session:
        first = jobs.list_jobs(session, project_id=project.id, limit=2)
        rest = jobs.list_jobs(session, project_id=project.id, limit=9, after=first.rows[-1].id)
        odd = jobs.list_jobs(session, project_id=project.id, limit=9, labels={"n": "1"})
        bare = jobs.list_jobs(session, project_id=project.id, limit=9, without_labels=True)
    assert [job.id for job in (*first.rows, *rest.rows)] == [job.id for job in reversed(made)]
    assert (first.has_more, rest.has_more) == (True, False)
    assert {job.id for job in odd.rows} == {made[1].id, made[3].id}
    assert [job.id for job in bare.rows] == [made[0].id]


@pytest.mark.parametrize("action", [jobs.cancel_job, jobs.pause_job, jobs.resume_job])
def test_a_wrong_state_is_a_400_that_says_so(database: Database, action: Any) -> None:
    """Never 409, which SDKs retry; the message names job, action and status."""
    with database.transaction() as session:
        project = make_project(session)
        job = make_job(session, project, status="succeeded")
    with database.transaction() as session, pytest.raises(InvalidRequest, match="succeeded") as refusal:
        action(session, project_id=project.id, job_id=job.id)
    assert (refusal.value.code, refusal.value.status) == ("invalid_job_state", 400)

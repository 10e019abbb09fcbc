"""Judges that are models of this house: for their project only, asked without a key of a caller."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.core.db import Database
from app.core.errors import InvalidRequest, Unavailable
from app.core.settings import Settings
from app.graders.grade import grade
from app.graders.result import Grade
from app.graders.spec import Grader, parse_grader
from app.services import graders, inference, models
from tests.engine import EngineServer, engine_running
from tests.factories import make_base_model, make_job, make_project
from tests.judge import JudgeServer, judging

TUNED = "ft:tiny:personal::AbCd1234"
RESULT = json.dumps({"steps": [], "result": 0.25})


def _judge(model: str) -> Grader:
    content = [{"role": "user", "content": "{{sample.output_text}}"}]
    return parse_grader({"type": "score_model", "name": "judge", "model": model, "input": content})


def _graded(database: Database, settings: Settings, project_id: str, model: str) -> Grade:
    grader = _judge(model)
    with database.reading() as session:
        served = inference.judges(session, settings=settings, project_id=project_id, grader=grader)
    graders.check_means(grader, settings=settings, param="grader", served=served)
    with graders.means(settings, grader, served=served) as means:
        return grade(grader, item={}, output_text="Paris", json_expected=False, means=means)


@pytest.fixture
def project_id(database: Database, settings: Settings) -> str:
    """A project with a base model and one tuned from it."""
    weights = "jobs/x/model.tok-1"
    (settings.root / weights).mkdir(parents=True)
    with database.transaction() as session:
        project = make_project(session)
        make_base_model(session)
        job = make_job(session, project)
        models.add_tuned(session, job=job, model_id=TUNED, kind="tuned", uri=weights, details={})
        return project.id


def test_a_base_and_a_tuned_model_judge(database: Database, settings: Settings, project_id: str) -> None:
    with engine_running() as engine:
        engine.write_providers(settings.root, "tiny")
        engine.says = RESULT
        for model in ("tiny", TUNED):
            done = _graded(database, settings, project_id, model)
            assert (done.reward, done.fault) == (0.25, "none"), done.message
        assert [asked["model"] for asked in engine.asked] == ["vendor/base", next(iter(engine.adapters))]
        assert engine.asked[0]["response_format"]["json_schema"]["strict"] is True
        assert engine.keys == [None, None]


def test_who_is_named_in_the_file_comes_first(
    database: Database, settings: Settings, project_id: str
) -> None:
    with engine_running() as engine, judging() as judge:
        engine.says = RESULT
        _write(settings.root, engine, judge, name="tiny")
        assert _graded(database, settings, project_id, "tiny").reward == 0.75
        _write(settings.root, engine, judge, name="*")
        # Whoever takes every name takes those nobody here has.
        assert _graded(database, settings, project_id, "tiny").reward == 0.25
        assert _graded(database, settings, project_id, "gpt-judge").reward == 0.75


def _write(folder: Path, engine: EngineServer, judge: JudgeServer, *, name: str) -> None:
    engine.write_providers(folder, "tiny")
    file = folder / "providers.toml"
    provider = f'[[provider]]\nname = "hosted"\nbase_url = "{judge.base_url}"\n[provider.models]\n'
    file.write_text(f'{file.read_text()}\n{provider}"{name}" = "judge-8b"\n')


def test_others_models_do_not_judge(database: Database, settings: Settings, project_id: str) -> None:
    with database.transaction() as session:
        other = make_project(session, "Other").id
    with pytest.raises(InvalidRequest, match="is not available as a judge"):
        _graded(database, settings, other, TUNED)


def test_a_stopped_model_does_not_judge(database: Database, settings: Settings, project_id: str) -> None:
    with database.transaction() as session:
        models.stop_model(session, project_id=project_id, model_id=TUNED)
    with pytest.raises(Unavailable, match=r"\*Load\*"):
        _graded(database, settings, project_id, TUNED)


def test_an_engine_that_is_away_is_nobodys_fault(
    database: Database, settings: Settings, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own inference process does not run: the grade is missing, never 0."""
    monkeypatch.setattr("app.graders.judge.time.sleep", lambda _seconds: None)
    done: Any = _graded(database, settings, project_id, "tiny")
    assert (done.reward, done.fault) == (None, "infrastructure")
    assert done.errors.model_grader_server_error

"""Graders that can't be run here are refused before they cost anything; what is run with closes again."""

from typing import Any

import pytest

from app.core.db import Database
from app.core.errors import InvalidRequest, Unavailable
from app.core.settings import Settings
from app.graders.grade import grade
from app.graders.spec import parse_grader
from app.services import graders, jobs
from tests.factories import make_base_model, make_file, make_project, method
from tests.judge import judging

JUDGE: dict[str, Any] = {
    "type": "score_model",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}
ENDPOINT = {"type": "endpoint", "url": "http://127.0.0.1:9000/score"}
PROVIDER = '[[provider]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1"\n[provider.models]\n"gpt-x" = "m"\n'


def _refused(settings: Settings, wire: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        graders.checked(wire, settings=settings, param="grader")
    return caught.value


def test_a_judge_nobody_runs(settings: Settings) -> None:
    settings.root.mkdir()
    file = settings.root / "providers.toml"
    refusal = _refused(settings, JUDGE)
    assert (refusal.param, refusal.code) == ("grader.model", "model_not_available")
    assert "there is none yet" in refusal.message
    file.write_text(PROVIDER)
    assert "there are 'gpt-x'" in _refused(settings, JUDGE | {"type": "score_model"}).message
    inside = {"type": "multi", "graders": {"one": JUDGE}, "calculate_output": "one"}
    assert _refused(settings, inside).param == "grader.graders.one.model"
    file.write_text(PROVIDER.replace("gpt-x", "*"))
    assert graders.checked(inside, settings=settings, param="grader") == parse_grader(inside)


def test_a_broken_file_is_the_operators_fault(settings: Settings) -> None:
    settings.root.mkdir()
    (settings.root / "providers.toml").write_text("[")
    with pytest.raises(Unavailable, match=r"providers\.toml"):
        graders.checked(JUDGE, settings=settings, param="grader")
    with pytest.raises(Unavailable, match=r"providers\.toml"), graders.means(settings, parse_grader(JUDGE)):
        pass


def test_an_endpoint_nobody_may_reach(settings: Settings) -> None:
    assert _refused(settings, ENDPOINT).param == "grader.url"
    wire = {"type": "multi", "graders": {"ours": ENDPOINT}, "calculate_output": "ours"}
    assert _refused(settings, wire).param == "grader.graders.ours.url"
    allowing = settings.model_copy(update={"webhook_allow": "127.0.0.1"})
    assert graders.checked(wire, settings=allowing, param="grader") == parse_grader(wire)


def test_a_job_is_refused_too(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        project = make_project(session)
        make_base_model(session)
        file = make_file(session, project)
        body = {"model": "tiny", "training_file": file.id, "method": method(JUDGE)}
        with pytest.raises(InvalidRequest) as caught:
            jobs.create_job(session, settings=settings, project_id=project.id, body=body)
    assert caught.value.param == "method.reinforcement.grader.model"


def test_what_a_grader_is_run_with(settings: Settings) -> None:
    grader = parse_grader(JUDGE)
    with judging() as judge:
        judge.write_providers(settings.root)
        with graders.means(settings, grader) as means:
            done = grade(grader, item={}, output_text="x", json_expected=False, means=means)
    assert done.reward == 0.75
    assert means.python is None

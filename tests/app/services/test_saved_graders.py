"""Saved graders: versions, projects apart, references in requests, what a job records."""

from typing import Any

import pytest
from sqlalchemy import select

from app.core.db import Database
from app.core.errors import InvalidRequest, NotFound
from app.core.settings import Settings
from app.core.tables import Event, GraderVersion, Job, Project
from app.graders.spec import Grader, parse_grader
from app.services import jobs, saved_graders
from tests.factories import GRADER, make_base_model, make_file, make_project, method

OTHER = GRADER | {"operation": "ilike"}
EXACT, LOOSE = parse_grader(GRADER), parse_grader(OTHER)


def save(database: Database, grader: Grader = EXACT, *, project: str | None = None) -> tuple[str, str]:
    """Save a grader, in a project of its own unless told, and return (project id, grader id)."""
    with database.transaction() as session:
        project = project or make_project(session).id
        saved, _ = saved_graders.create_grader(session, project_id=project, name="Exact", grader=grader)
        return project, saved.id


def test_versions_are_kept_and_equal_content_is_none(database: Database) -> None:
    project, grader_id = save(database)
    with database.transaction() as session:
        place = {"project_id": project, "grader_id": grader_id}
        assert saved_graders.add_version(session, **place, grader=EXACT).version == 1
        # Equal after normalisation is equal.
        same = dict(reversed(GRADER.items())) | {"pass_threshold": 1}
        assert saved_graders.add_version(session, **place, grader=parse_grader(same)).version == 1
        second = saved_graders.add_version(session, **place, grader=LOOSE)
        assert (second.version, second.content["operation"]) == (2, "ilike")
        third = saved_graders.add_version(session, **place, grader=EXACT)
        first = saved_graders.get_version(session, **place, version=1)
        assert (third.version, third.sha256, first.sha256 == second.sha256) == (3, first.sha256, False)
    with database.reading() as session:
        page = saved_graders.list_versions(session, **place, limit=2)
        assert ([v.version for v in page.rows], page.has_more) == ([3, 2], True)
        rest = saved_graders.list_versions(session, **place, limit=2, after=page.rows[-1].id)
        assert ([v.version for v in rest.rows], rest.has_more) == ([1], False)
        assert saved_graders.get_version(session, **place).version == 3
        with pytest.raises(NotFound, match="there are 1 to 3"):
            saved_graders.get_version(session, **place, version=4)


def test_a_list_holds_the_project_with_latest_versions(database: Database) -> None:
    project, first = save(database)
    _, second = save(database, LOOSE, project=project)
    save(database)
    with database.transaction() as session:
        saved_graders.rename_grader(session, project_id=project, grader_id=first, name="  Mine ")
        saved_graders.add_version(session, project_id=project, grader_id=first, grader=LOOSE)
    with database.reading() as session:
        page = saved_graders.list_graders(session, project_id=project, limit=10)
    found = {saved.id: (saved.name, version.version) for saved, version in page.rows}
    assert found == {first: ("Mine", 2), second: ("Exact", 1)}


def test_another_projects_grader_does_not_exist(database: Database) -> None:
    _, grader_id = save(database)
    with database.transaction() as session:
        other = make_project(session).id
        place = {"project_id": other, "grader_id": grader_id}
        for call in (
            lambda: saved_graders.get_grader(session, **place),
            lambda: saved_graders.get_version(session, **place),
            lambda: saved_graders.add_version(session, **place, grader=EXACT),
            lambda: saved_graders.rename_grader(session, **place, name="x"),
            lambda: saved_graders.delete_grader(session, **place),
        ):
            with pytest.raises(NotFound):
                call()
        with pytest.raises(InvalidRequest):
            saved_graders.resolve(
                session, project_id=other, grader={"type": "saved", "id": grader_id}, param="grader"
            )


def test_deleting_takes_the_versions_along(database: Database) -> None:
    project, grader_id = save(database)
    with database.transaction() as session:
        saved_graders.delete_grader(session, project_id=project, grader_id=grader_id)
    with database.reading() as session:
        assert session.scalars(select(GraderVersion)).all() == []


@pytest.mark.parametrize("name", ["", "  ", "x" * 256])
def test_a_name_has_bounds(database: Database, name: str) -> None:
    with database.transaction() as session, pytest.raises(InvalidRequest) as caught:
        saved_graders.create_grader(session, project_id=make_project(session).id, name=name, grader=EXACT)
    assert caught.value.param == "name"


def _create(database: Database, settings: Settings, project: str, grader: Any) -> Job:
    with database.transaction() as session:
        make_base_model(session)
        file = make_file(session, session.get_one(Project, project))
        body = {"model": "tiny", "training_file": file.id, "method": method(grader)}
        return jobs.create_job(session, settings=settings, project_id=project, body=body)


def test_a_job_records_what_it_resolved_to(database: Database, settings: Settings) -> None:
    project, grader_id = save(database)
    with database.transaction() as session:
        saved_graders.add_version(session, project_id=project, grader_id=grader_id, grader=LOOSE)
    job = _create(database, settings, project, {"type": "saved", "id": grader_id, "version": 1})
    assert job.method["reinforcement"]["grader"] == GRADER
    param = "method.reinforcement.grader"
    assert job.saved_graders is not None
    assert {**job.saved_graders[param], "sha256": ""} == {"id": grader_id, "version": 1, "sha256": ""}
    with database.transaction() as session:
        saved_graders.delete_grader(session, project_id=project, grader_id=grader_id)
    with database.reading() as session:
        kept = session.get_one(Job, job.id)
        assert kept.method["reinforcement"]["grader"] == GRADER
        messages = session.scalars(select(Event.message).where(Event.job_id == job.id)).all()
    assert any(f"version 1 of {grader_id} (sha256 " in message for message in messages)


def test_saved_graders_inside_a_multi(database: Database, settings: Settings) -> None:
    project, grader_id = save(database)
    saved = {"type": "saved", "id": grader_id}
    parts: list[Any] = [{"a": saved, "b": OTHER}, [OTHER | {"name": "b"}, saved], saved]
    for graders_given, formula, place in zip(
        parts, ["a + b", "b + exact", "exact"], [".graders.a", ".graders[1]", ".graders"], strict=True
    ):
        wire = {"type": "multi", "graders": graders_given, "calculate_output": formula}
        job = _create(database, settings, project, wire)
        assert list(job.saved_graders or {}) == [f"method.reinforcement.grader{place}"]
        assert GRADER in job.method["reinforcement"]["grader"]["graders"].values()


@pytest.mark.parametrize(
    ("reference", "param"),
    [
        ({}, ".id"),
        ({"id": 3}, ".id"),
        ({"id": "grader_gone"}, ".id"),
        ({"version": 2}, ".version"),
        ({"version": "1"}, ".version"),
        ({"version": True}, ".version"),
        ({"name": "x"}, ".name"),
    ],
)
def test_a_bad_reference_names_its_key(
    database: Database, settings: Settings, reference: dict[str, Any], param: str
) -> None:
    project, grader_id = save(database)
    known = {"id": grader_id} if reference and "id" not in reference else {}
    with pytest.raises(InvalidRequest) as caught:
        _create(database, settings, project, {"type": "saved"} | known | reference)
    assert caught.value.param == f"method.reinforcement.grader{param}"

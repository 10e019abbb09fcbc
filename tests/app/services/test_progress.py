"""Marks and curves of many jobs at once, on both databases."""

from app.core.db import Database
from app.services import events, progress
from tests.factories import make_job, make_project


def test_curves_hold_validation_steps_only(database: Database) -> None:
    with database.transaction() as session:
        project = make_project(session)
        one, other, bare = (make_job(session, project) for _ in range(3))
        for job, step, valid in ((one, 0, 0.25), (one, 1, None), (one, 5, 0.5), (other, 0, 1.0)):
            data = {"step": step} | ({"full_valid_mean_reward": valid} if valid is not None else {})
            events.append(session, job_id=job.id, type="metrics", message="", data=data)
        events.append(session, job_id=one.id, message="no metrics", data={"full_valid_mean_reward": 9.0})
        curves = progress.valid_curves(session, job_ids=[one.id, other.id, bare.id])
    assert curves == {one.id: [(0, 0.25), (5, 0.5)], other.id: [(0, 1.0)]}


def test_of_a_step_told_twice_the_later_telling_stands(database: Database) -> None:
    with database.transaction() as session:
        job = make_job(session, make_project(session))
        for valid in (0.1, 0.2):
            data = {"step": 5, "full_valid_mean_reward": valid}
            events.append(session, job_id=job.id, type="metrics", message="", data=data)
        assert progress.valid_curves(session, job_ids=[job.id]) == {job.id: [(5, 0.2)]}


def test_an_event_changes_the_mark_of_its_job_only(database: Database) -> None:
    with database.transaction() as session:
        project = make_project(session)
        one, other = make_job(session, project), make_job(session, project)
        before = progress.marks(session, job_ids=[one.id, other.id])
        events.append(session, job_id=one.id, message="hello")
        after = progress.marks(session, job_ids=[one.id, other.id])
        assert after[one.id] != before[one.id]
        assert after[other.id] == before[other.id]
        assert progress.marks(session, job_ids=[]) == {}

"""Rollouts and what is read from them: pages with texts, the paired verdict, retention, kept checkpoints."""

import pytest
from sqlalchemy import select

from app.core import clock
from app.core.db import Database
from app.core.errors import NotFound
from app.core.storage import Storage
from app.core.tables import Job, Model
from app.services import checkpoints, evaluations, rollouts
from app.services.rollouts import RolloutRecord
from tests.factories import make_job, make_project


def record(item: int, reward: float | None, sample: int = 0, text: str = "a") -> RolloutRecord:
    """Return a rollout of no particular interest."""
    return RolloutRecord(
        item_index=item,
        sample_index=sample,
        completion=text,
        reward=reward,
        advantage=None,
        grader_rewards={},
        errors={"other_error": reward is None},
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
    )


def save(
    database: Database, storage: Storage, job: Job, step: int, split: str, records: list[RolloutRecord]
) -> None:
    """Write and name a batch as the runner does."""
    uri = rollouts.batch_uri(job_id=job.id, step=step, split=split, token=1)
    storage.write(uri, rollouts.encode_batch(records))
    with database.transaction() as session:
        rollouts.save_batch(session, job_id=job.id, step=step, split=split, uri=uri, records=records)


@pytest.fixture
def job(database: Database) -> Job:
    """A running job."""
    with database.transaction() as session:
        return make_job(
            session, make_project(session), status="running", lease_owner="a", lease_expires_at=9e9
        )


def test_pages_carry_their_texts(database: Database, storage: Storage, job: Job) -> None:
    """Rows of several batches come in the order they were committed, each with its own text."""
    save(database, storage, job, 1, "train", [record(0, 1.0, text="é\u2028x"), record(1, None, text="b")])
    save(database, storage, job, 2, "train", [record(0, 0.0, text="c")])
    with database.reading() as session:
        first = rollouts.list_rollouts(session, storage=storage, job_id=job.id, limit=2)
        rest = rollouts.list_rollouts(
            session, storage=storage, job_id=job.id, limit=2, after=first.rows[-1]["id"]
        )
        only = rollouts.list_rollouts(session, storage=storage, job_id=job.id, step=1, item_index=1, limit=9)
    assert [row["completion"] for row in (*first.rows, *rest.rows)] == ["é\u2028x", "b", "c"]
    assert (first.has_more, rest.has_more) == (True, False)
    assert only.rows[0]["errors"] == {"other_error": True}
    assert only.rows[0]["reward"] is None


def test_the_verdict_pairs_items_and_prefers_the_test_split(
    database: Database, storage: Storage, job: Job
) -> None:
    """Provisional on validation; then the test split, a missing grade leaving its pair out."""
    with database.reading() as session:
        assert evaluations.evaluation(session, job=job) is None
    save(database, storage, job, 0, "valid", [record(n, 0.0) for n in range(4)])
    save(database, storage, job, 5, "valid", [record(n, float(n > 0)) for n in range(4)])
    with database.reading() as session:
        early = evaluations.evaluation(session, job=job)
    assert early is not None
    assert (early["split"], early["provisional"], early["fixed"]) == ("valid", True, 3)
    save(database, storage, job, 0, "test", [record(0, 1.0), record(1, 0.0), record(2, 0.0), record(3, None)])
    save(database, storage, job, 9, "test", [record(0, 0.0), record(1, 1.0), record(2, 1.0), record(3, 1.0)])
    with database.reading() as session:
        final = evaluations.evaluation(session, job=job)
        items = evaluations.items(session, job=job)
    assert final is not None
    assert (final["split"], final["provisional"], final["n"]) == ("test", False, 3)
    assert (final["fixed"], final["broken"]) == (2, 1)
    assert final["difference"]["mean"] == pytest.approx(1 / 3)
    low, high = final["difference"]["ci95"]
    assert low < 1 / 3 < high
    assert [item["change"] for item in items] == ["broken", "fixed", "fixed"]


def test_bootstrap_covers_and_repeats() -> None:
    """A constant has no spread; the same numbers give the same interval; it widens with spread."""
    constant = evaluations.bootstrap([0.5] * 10)
    assert (constant.mean, constant.low, constant.high) == (0.5, 0.5, 0.5)
    values = [0.0, 1.0] * 50
    assert evaluations.bootstrap(values) == evaluations.bootstrap(values)
    interval = evaluations.bootstrap(values)
    # The normal approximation: 0.5 ± 1.96 · sqrt(0.25 / 100).
    assert interval.low == pytest.approx(0.402, abs=0.015)
    assert interval.high == pytest.approx(0.598, abs=0.015)


def test_bootstrap_draws_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's size moves no number, and one of fewer numbers than a resample still works."""
    values = [0.1, 0.7, 0.4] * 11
    whole = evaluations.bootstrap(values)
    for numbers in (1, 7_777):
        monkeypatch.setattr(evaluations, "BLOCK_NUMBERS", numbers)
        assert evaluations.bootstrap(values) == whole


def test_old_rollouts_are_forgotten(database: Database, storage: Storage, job: Job) -> None:
    """Only those of jobs that ended before the moment; the running job keeps its own, the verdict stays."""
    save(database, storage, job, 0, "test", [record(0, 0.0, text="before")])
    save(database, storage, job, 1, "train", [record(0, 1.0)])
    save(database, storage, job, 1, "test", [record(0, 1.0, text="after")])
    with database.reading() as session:
        verdict = evaluations.evaluation(session, job=job)
    with database.transaction() as session:
        assert rollouts.forget_old(session, before=clock.now() + 10) == []
        session.get_one(Job, job.id).finished_at = 5.0
        session.flush()
        gone = rollouts.forget_old(session, before=10.0)
    assert gone == [rollouts.batch_uri(job_id=job.id, step=1, split="train", token=1)]
    storage.remove(gone[0])
    with database.reading() as session:
        page = rollouts.list_rollouts(session, storage=storage, job_id=job.id, limit=9)
        assert [row["completion"] for row in page.rows] == ["before", "after"]
        assert verdict is not None
        assert evaluations.evaluation(session, job=job) == verdict


def test_lost_bytes_are_a_clear_answer(database: Database, storage: Storage, job: Job) -> None:
    """A page read while its bytes go, or after a backup without them, is a 404 that names the step."""
    save(database, storage, job, 3, "train", [record(0, 1.0)])
    storage.remove(rollouts.batch_uri(job_id=job.id, step=3, split="train", token=1))
    with database.reading() as session, pytest.raises(NotFound, match="step 3 on the train file"):
        rollouts.list_rollouts(session, storage=storage, job_id=job.id, limit=9)


def test_the_best_three_checkpoints_stay(database: Database, job: Job) -> None:
    """A fourth pushes out the worst, model and all; ties go to the later step; a pause's snapshot stays."""
    dropped: list[str] = []
    with database.transaction() as session:
        for step, reward in ((5, 0.2), (10, 0.4), (12, None), (15, 0.3), (20, 0.4)):
            if reward is None or checkpoints.is_kept(session, job_id=job.id, valid_reward_mean=reward):
                dropped += checkpoints.keep(
                    session,
                    job=session.get_one(Job, job.id),
                    step=step,
                    model_id=f"ft:tiny:o::{step}",
                    uri=f"uri-{step}",
                    metrics={},
                    valid_reward_mean=reward,
                )
        assert not checkpoints.is_kept(session, job_id=job.id, valid_reward_mean=0.1)
    with database.reading() as session:
        page = checkpoints.list_checkpoints(session, job_id=job.id, limit=10)
        names = session.scalars(select(Model.id).where(Model.kind == "checkpoint")).all()
    assert [row.step_number for row in page.rows] == [20, 15, 12, 10]
    assert dropped == ["uri-5"]
    assert "ft:tiny:o::5" not in names

"""A job whose grader is a judge over real HTTP: what it pays, what a dead judge does, what a rerun costs."""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from app.core.context import Context
from app.core.tables import Event, Job, Rollout
from app.services import jobs
from tests.judge import JudgeServer, judging, scores
from tests.worker.conftest import MakeJob, rows
from tests.worker.test_runner import adapter, read, work
from worker import scoring

JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "likes a",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "Does it say {{item.letter}}? {{sample.output_text}}"}],
}
TOKENS = {"prompt_tokens": 190, "completion_tokens": 134, "total_tokens": 324, "cached_tokens": 64}


def opinion(asked: dict[str, Any]) -> Any:
    """Judge as a model would: read the answer between its marks and like every letter a."""
    answer = re.search(r"<<answer \w+\n(.*)\nanswer \w+>>", asked["messages"][1]["content"], re.DOTALL)
    assert answer is not None
    return scores(min(answer[1].count("a"), 4) / 4)


@pytest.fixture
def judge(context: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge that the data folder names; nobody waits long before trying again."""
    monkeypatch.setattr(scoring, "BACK_OFF", (0.0,))
    with judging() as judge:
        judge.answer_to = opinion
        judge.write_providers(context.settings.root, attempts=2)
        yield judge


def rewards(context: Context, job: Job) -> list[tuple[Any, ...]]:
    """Return the reward and the flags of every committed rollout in its place."""
    query = select(Rollout).where(Rollout.job_id == job.id).order_by(Rollout.number)
    with context.db.reading() as session:
        return [
            (one.step, one.split, one.item_index, one.sample_index, one.reward, one.flags)
            for one in session.scalars(query)
        ]


def forget(context: Context) -> None:
    """Lose every judgement that was kept."""
    shutil.rmtree(context.settings.root / "judgements")


def test_a_job_pays_for_each_judgement_once(context: Context, create: MakeJob, judge: JudgeServer) -> None:
    """Distinct judgements are asked and counted; the same job again asks nothing and ends the same."""
    first = create(train=rows(12), valid=rows(3), grader=JUDGE)
    work(context)
    work(context)
    done = read(context, first)
    assert (done.status, done.error_message) == ("succeeded", None)
    asked = [json.dumps(request, sort_keys=True) for request in judge.asked]
    assert len(asked) == len(set(asked)) > 0
    paid = {name: len(asked) * count for name, count in TOKENS.items()}
    assert done.grader_tokens == {"judge-8b": paid}
    second = create(train=rows(12), valid=rows(3), grader=JUDGE)
    work(context)
    work(context)
    assert len(judge.asked) == len(asked)
    assert read(context, second).grader_tokens == {}
    assert adapter(context, second) == adapter(context, first)


def test_a_killed_judge_pauses_the_job_and_teaches_it_nothing(
    context: Context, create: MakeJob, judge: JudgeServer
) -> None:
    """Killed after a step, back after the pause: not one reward differs from a run in which it lived."""
    whole = create(train=rows(12), valid=rows(3), grader=JUDGE)
    work(context)
    work(context)
    forget(context)
    broken = create(train=rows(12), valid=rows(3), grader=JUDGE)
    work(context)
    looks = 0

    def kill_later() -> bool:
        nonlocal looks
        looks += 1
        judge.down = looks > 1
        return False

    work(context, kill_later)
    paused = read(context, broken)
    assert paused.status == "paused"
    assert paused.fine_tuned_model is None or paused.step > 0
    with context.db.reading() as session:
        query = select(Event).where(Event.job_id == broken.id, Event.level == "error")
        (event,) = session.scalars(query)
    assert set(event.data["errors"]) == {"model_grader_server_error"}
    assert "'local' gave no answer" in event.message
    judge.down = False
    with context.db.transaction() as session:
        jobs.resume_job(session, project_id=broken.project_id, job_id=broken.id)
    work(context)
    assert read(context, broken).status == "succeeded"
    assert rewards(context, broken) == rewards(context, whole)
    assert adapter(context, broken) == adapter(context, whole)

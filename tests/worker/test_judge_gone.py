"""A job whose judge, or the way to it, is gone for a while: the account and the operator's file.

That such a pause teaches nothing stands in test_judged_run.py.
"""

import hashlib
from collections import Counter
from contextlib import ExitStack
from typing import Any

from sqlalchemy import select

from app.core.context import Context
from app.core.tables import Event, Rollout
from app.services import jobs
from tests.judge import USAGE, JudgeServer, judging, scores
from tests.worker.conftest import MakeJob, rows
from tests.worker.test_runner import read, work

JUDGE = {
    "type": "score_model",
    "name": "taste",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "Rate: {{sample.output_text}}"}],
}


def opinion(request: dict[str, Any]) -> dict[str, Any]:
    """Return the same score for the same answer, and never 0."""
    text = str(request["messages"][-1]["content"])
    return scores(0.2 + hashlib.sha256(text.encode()).digest()[0] % 5 / 10)


def paid(*judges: JudgeServer) -> dict[str, int]:
    """Return the tokens that all answered requests took."""
    asked = sum(len(judge.asked) for judge in judges)
    return {
        "prompt_tokens": asked * USAGE["prompt_tokens"],
        "completion_tokens": asked * USAGE["completion_tokens"],
        "cached_tokens": asked * 64,
        "total_tokens": asked * USAGE["total_tokens"],
    }


def test_a_broken_providers_file_pauses_and_names_the_line(context: Context, create: MakeJob) -> None:
    """The operator's slip costs nobody a job."""
    with judging() as judge:
        judge.answer_to = opinion
        judge.write_providers(context.settings.root)
        job = create(grader=JUDGE)
        work(context)
        (context.settings.root / "providers.toml").write_text("[[provider")
        work(context)
        assert read(context, job).status == "paused"
        with context.db.reading() as session:
            (event,) = session.scalars(select(Event).where(Event.level == "error"))
        assert "providers.toml" in event.message
        judge.write_providers(context.settings.root)
        with context.db.transaction() as session:
            jobs.resume_job(session, project_id=job.project_id, job_id=job.id)
        work(context)
    assert read(context, job).status == "succeeded"


def test_what_judges_took_before_and_after_a_pause_is_all_counted(context: Context, create: MakeJob) -> None:
    """The judge dies after step 1 and comes back elsewhere; no reward is 0, none is missing."""
    server = ExitStack()
    first = server.enter_context(judging())
    first.answer_to = opinion
    first.write_providers(context.settings.root, attempts=2)
    job = create(grader=JUDGE, train=rows(12), valid=rows(2))
    work(context)

    def kill_after_step_1() -> bool:
        if read(context, job).step == 1:
            server.close()
        return False

    work(context, kill_after_step_1)
    assert (read(context, job).status, read(context, job).step) == ("paused", 1)
    with context.db.reading() as session:
        (event,) = session.scalars(select(Event).where(Event.level == "error"))
    assert event.data["errors"].keys() == {"model_grader_server_error"}
    assert "gave no answer" in event.message
    assert read(context, job).grader_tokens == {"judge-8b": paid(first)}
    with judging() as second:
        second.answer_to = opinion
        second.write_providers(context.settings.root)
        with context.db.transaction() as session:
            jobs.resume_job(session, project_id=job.project_id, job_id=job.id)
        work(context)
        done = read(context, job)
        assert done.status == "succeeded"
        assert done.grader_tokens == {"judge-8b": paid(first, second)}
        with context.db.reading() as session:
            rewards = Counter(session.scalars(select(Rollout.reward).where(Rollout.job_id == job.id)))
        assert sum(rewards.values()) == 48 + 3 * 2
        assert min(reward for reward in rewards if reward is not None) >= 0.2
        assert None not in rewards

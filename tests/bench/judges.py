"""What a judge costs, and what its death does: a job whose judge is killed, and the same job run again.

`python -m tests.bench.judges` prints a line each and exits non-zero when a reward differs from those of the
undisturbed run, or a judgement is paid twice. The judge is a real server on loopback, the model a tiny one.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.core import migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Job, Rollout
from app.services import jobs, leases, models, projects
from tests.factories import jsonl, make_file, question
from tests.judge import JudgeServer, judging, scores
from tests.tiny_model import build_tiny_model
from worker.runner import Run
from worker.validation import validate

GRADER: dict[str, Any] = {
    "type": "score_model",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "How many times is there an a? {{sample.output_text}}"}],
}
NUMBERS = {
    "batch_size": 4,
    "samples_per_prompt": 4,
    "max_completion_tokens": 8,
    "n_epochs": 2,
    "lora_rank": 4,
    "eval_interval": 2,
    "eval_samples": 1,
}
JUDGE_SECONDS = 0.05


def main() -> int:
    """Print every figure; return the exit code."""
    logging.getLogger("app.core.queue").setLevel(logging.ERROR)  # no broker runs here
    with judging() as judge:
        judge.delay = JUDGE_SECONDS
        judge.answer_to = lambda asked: scores(min(asked["messages"][1]["content"].count("a"), 16) / 16)
        whole, asked, seconds = _undisturbed(judge)
        tokens = 324 * asked
        print(f"judge: {len(whole)} answers, {asked} judgements asked, {tokens} tokens, {seconds:.1f} s")
        return _killed(judge, whole) + _again(judge, asked, seconds)


def _undisturbed(judge: JudgeServer) -> tuple[dict[tuple[Any, ...], float | None], int, float]:
    with tempfile.TemporaryDirectory() as folder:
        context = _context(folder, judge)
        started = time.monotonic()
        job = _finished(context, _created(context))
        return _rewards(context, job), len(judge.asked), time.monotonic() - started


def _killed(judge: JudgeServer, whole: dict[tuple[Any, ...], float | None]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        context = _context(folder, judge)
        job = _created(context)
        looks = 0

        def kill_later() -> bool:
            nonlocal looks
            looks += 1
            judge.down = looks > 2
            return False

        _work(context, kill_later)
        _work(context, kill_later)
        paused = _read(context, job)
        judge.down = False
        with context.db.transaction() as session:
            jobs.resume_job(session, project_id=job.project_id, job_id=job.id)
        _work(context, lambda: False)
        done, rewards = _read(context, job), _rewards(context, job)
    zeros = sum(rewards[place] == 0 != reward for place, reward in whole.items())
    other = sum(rewards.get(place) != reward for place, reward in whole.items())
    held = (paused.status, done.status, other) == ("paused", "succeeded", 0)
    print(
        f"judge killed: {paused.status} at step {paused.step}, resumed, {done.status} at step {done.step}; "
        f"{zeros} of {len(whole)} rewards were 0 because of it, {other} differ in any way"
    )
    return 0 if held else 1


def _again(judge: JudgeServer, asked: int, seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        context = _context(folder, judge)
        _finished(context, _created(context))
        before = len(judge.asked)
        started = time.monotonic()
        job = _finished(context, _created(context))
        paid = len(judge.asked) - before
        took = time.monotonic() - started
        tokens = sum(used["total_tokens"] for used in job.grader_tokens.values())
    print(
        f"judge asked again: {paid} of {asked} judgements paid, {tokens} of {324 * asked} tokens, "
        f"{took:.1f} s after {seconds:.1f} s"
    )
    return 0 if (paid, tokens) == (0, 0) else 1


def _context(folder: str, judge: JudgeServer) -> Context:
    root = Path(folder)
    settings = Settings(data=root / "data", models=root / "models", threads=1)
    judge.write_providers(settings.root, attempts=1)
    migrate.upgrade(settings)
    context = Context.build(settings)
    build_tiny_model(settings.models / "tiny")
    with context.db.transaction() as session:
        found = {"tiny": {"parameters": 100_000, "context": 4096}}
        models.register_base_models(session, found=found)
    return context


def _created(context: Context) -> Job:
    with context.db.transaction() as session:
        project = projects.default_project(session)
        rows = jsonl(question(f"Say {n}", "a") for n in range(16))
        file = make_file(session, project, context.storage, data=rows)
        inner = {"grader": GRADER, "hyperparameters": NUMBERS}
        method = {"type": "reinforcement", "reinforcement": inner}
        body = {"model": "tiny", "seed": 11, "training_file": file.id, "method": method}
        return jobs.create_job(session, settings=context.settings, project_id=project.id, body=body)


def _finished(context: Context, job: Job) -> Job:
    _work(context, lambda: False)
    _work(context, lambda: False)
    return _read(context, job)


def _work(context: Context, stopping: Any) -> None:
    """Do what one trainer process does after one claim."""
    with context.db.transaction() as session:
        lease = leases.claim(session, owner="bench", seconds=60, max_attempts=5)
    assert lease is not None
    if _read_status(context, lease.job_id) == "validating_files":
        validate(context, lease)
    else:
        Run(context, lease, stopping).train()


def _read(context: Context, job: Job) -> Job:
    with context.db.reading() as session:
        return session.get_one(Job, job.id)


def _read_status(context: Context, job_id: str) -> str:
    with context.db.reading() as session:
        return session.get_one(Job, job_id).status


def _rewards(context: Context, job: Job) -> dict[tuple[Any, ...], float | None]:
    with context.db.reading() as session:
        found = session.scalars(select(Rollout).where(Rollout.job_id == job.id))
        return {(one.step, one.split, one.item_index, one.sample_index): one.reward for one in found}


if __name__ == "__main__":
    sys.exit(main())

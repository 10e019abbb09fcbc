"""Grading while sampling: answers are heard as they end, and nothing a step computes depends on it."""

import threading
import time
from typing import Any

import pytest

from app.graders.grade import grade
from app.graders.result import Grade
from app.graders.spec import parse_grader
from tests.worker.conftest import GRADER
from tests.worker.engine.conftest import Load, prompts_for, settings
from worker import scoring
from worker.engine.reinforcement import Reinforcement
from worker.engine.sampler import Sampling, sample
from worker.engine.types import Rollout, StepReport
from worker.scoring import Scorer

# A random model hardly ever stops by itself: with many stop tokens, rows leave at different times.
MANY_STOPS = tuple(range(0, 264, 9))
TEXTS = ("a", "bb", "what now")


def test_every_answer_is_heard_once_as_it_is_and_before_its_wave_ends(load: Load) -> None:
    """The shortest first: an answer that ended waits for no longer one."""
    policy = load(trained=True)
    policy.stop_ids = MANY_STOPS
    heard: list[Rollout] = []
    sampling = Sampling("train", 2, samples=4, max_tokens=24, temperature=1.0, seed=11)
    with policy.merged():
        waves = sample(policy, prompts_for(policy, *TEXTS), sampling, None, heard.append)
        found = [rollout for wave in waves for rollout in wave]
    lengths = [len(one.token_ids) for one in heard]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3
    assert sorted(heard, key=lambda one: (one.item_index, one.sample_index)) == found


def timeless(report: StepReport) -> tuple[object, ...]:
    """Return what a step computed."""
    return (report.rollouts, report.metrics.loss, report.metrics.grad_norm, report.metrics.reward_mean)


def slow_scorer() -> Scorer:
    """Return a scorer of the prompts' items."""
    items = {index: {"letter": "a"} for index in range(len(TEXTS))}
    return Scorer(
        parse_grader(GRADER),
        {"train": items},
        json_expected=False,
        errors_are_zero=False,
    )


def run(load: Load, score: Scorer, *, early: bool, sampled: list[float]) -> list[tuple[object, ...]]:
    """Train three steps, each prompt a wave of its own; `sampled` takes the moment of each answer."""
    policy = load(total_steps=3)
    policy.wave_tokens = 1

    def heard(rollout: Rollout) -> None:
        sampled.append(time.perf_counter())
        if early:
            score.begin(rollout)

    training = Reinforcement(
        policy,
        train_prompts=prompts_for(policy, *TEXTS),
        valid_prompts=(),
        score=score,
        config=settings(total_steps=3),
        on_answer=heard,
    )
    return [timeless(report) for report in training.steps()]


def test_a_slow_grader_runs_beside_the_sampling_and_beside_itself(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 ms a grade: its intervals overlap the sampling's and each other's, and no number changes."""
    intervals: list[tuple[float, float]] = []
    lock = threading.Lock()

    def slow(*arguments: Any, **named: Any) -> Grade:
        started = time.perf_counter()
        time.sleep(0.2)
        found = grade(*arguments, **named)
        with lock:
            intervals.append((started, time.perf_counter()))
        return found

    monkeypatch.setattr(scoring, "grade", slow)
    sampled: list[float] = []
    with slow_scorer() as score:
        early = run(load, score, early=True, sampled=sampled)
    assert len(intervals) == 36
    # Three steps of twelve answers: while the last wave was sampled, the first one's grades were under way.
    for step in range(3):
        first, last = sampled[12 * step], sampled[12 * step + 11]
        during = [one for one in intervals if first <= one[0] < last]
        assert during
    together = max(sum(start <= at < end for start, end in intervals) for at, _ in intervals)
    assert together > 4
    monkeypatch.setattr(scoring, "grade", grade)
    with slow_scorer() as score:
        assert run(load, score, early=False, sampled=[]) == early


def test_a_refused_step_leaves_the_run_where_it_was(load: Load) -> None:
    """The scorer's exception ends the step before its update, and the same step can be taken again."""

    class Refused(Exception):
        """What a scorer may raise."""

    refusing = True

    def score(rollouts: Any) -> list[float | None]:
        if refusing and rollouts[0].step == 2:
            raise Refused
        return [float(one.sample_index % 2) for one in rollouts]

    def start() -> Reinforcement:
        policy = load()
        return Reinforcement(
            policy,
            train_prompts=prompts_for(policy, *TEXTS),
            valid_prompts=(),
            score=score,
            config=settings(),
        )

    broken, whole = start(), start()
    stepping = broken.steps()
    found = [timeless(next(stepping))]
    before = {name: weight.detach().clone() for name, weight in broken.policy.adapter.items()}
    with pytest.raises(Refused):
        next(stepping)
    assert broken.step == 1
    assert all(bool((weight == before[name]).all()) for name, weight in broken.policy.adapter.items())
    refusing = False
    found += [timeless(report) for report in broken.steps()]
    assert found == [timeless(report) for report in whole.steps()]

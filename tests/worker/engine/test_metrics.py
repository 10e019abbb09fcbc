"""A step's figures from its rollouts and its times, against numbers worked by hand."""

from dataclasses import replace

import pytest

from worker.engine.metrics import Measured
from worker.engine.types import Rollout


def answer(tokens: int, *, cut: bool) -> Rollout:
    ids, logprobs = (5,) * tokens, (-1.0,) * tokens
    return Rollout("train", 1, 0, 0, 3, ids, logprobs, "", "length" if cut else "stop")


def test_rates_and_shares_by_hand() -> None:
    measured = Measured(groups=4, groups_without_signal=1)
    measured.seconds = {"sampling": 2.0, "grading": 0.5, "training": 1.0, "evaluation": 6.0}
    rollouts = [answer(30, cut=True), answer(10, cut=False), answer(20, cut=False), answer(20, cut=False)]
    figures = replace(measured.freeze(rollouts, [1.0, None, 0.0, 0.5]), iteration_seconds=10.0)
    assert (figures.completion_tokens, figures.completion_tokens_mean) == (80, 20.0)
    assert (figures.reward_mean, figures.graded) == (0.5, 3)
    assert figures.truncated_fraction == 0.25
    assert figures.pct_no_signal == 0.25
    # Ten seconds, six of them validation: 80 tokens in the other four.
    assert figures.tokens_per_second == pytest.approx(20.0)
    assert (figures.sampling_seconds, figures.training_seconds, figures.evaluation_seconds) == (2.0, 1.0, 6.0)


def test_a_step_without_answers_has_no_rates() -> None:
    figures = Measured().freeze([], [])
    assert (figures.tokens_per_second, figures.pct_no_signal, figures.truncated_fraction) == (0.0, 0.0, 0.0)

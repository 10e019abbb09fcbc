"""Evaluation: every item answered, graded once, progress told, base and tuned told apart."""

from collections.abc import Sequence

import pytest

from tests.worker.engine.conftest import Load, prompts_for
from worker.engine.evaluate import evaluate
from worker.engine.types import EvaluationReport, Rollout, Score


def run(
    load: Load, score: Score, *, adapter: bool = True, temperature: float = 0.0, samples: int = 2
) -> EvaluationReport:
    policy = load(trained=True)
    return evaluate(
        policy,
        prompts=prompts_for(policy, "a", "bb", "ccc"),
        score=score,
        split="test",
        step=4,
        samples=samples,
        max_completion_tokens=6,
        temperature=temperature,
        seed=1,
        adapter=adapter,
    )


def lengths(rollouts: Sequence[Rollout]) -> list[float | None]:
    return [None if one.item_index == 1 else float(one.item_index + one.sample_index) for one in rollouts]


def test_missing_grades_are_neither_counted_nor_zero(load: Load) -> None:
    report = run(load, lengths)
    assert report.graded == 4
    assert report.reward_mean == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert [scored.reward for scored in report.rollouts] == [0.0, 1.0, None, None, 2.0, 3.0]
    assert {scored.advantage for scored in report.rollouts} == {None}
    assert (report.split, report.step) == ("test", 4)


def test_nothing_graded_has_no_mean(load: Load) -> None:
    report = run(load, lambda rollouts: [float("nan")] * len(rollouts))
    assert (report.graded, report.reward_mean) == (0, None)


def test_greedy_samples_agree_and_the_adapter_changes_them(load: Load) -> None:
    tuned = run(load, lengths)
    base = run(load, lengths, adapter=False)
    texts = [scored.rollout.token_ids for scored in tuned.rollouts]
    assert texts[0::2] == texts[1::2]
    assert texts != [scored.rollout.token_ids for scored in base.rollouts]


def test_progress_is_told_after_each_wave(load: Load) -> None:
    policy = load()
    policy.wave_tokens = 1
    heard: list[tuple[int, int]] = []
    evaluate(
        policy,
        prompts=prompts_for(policy, "a", "bb", "ccc"),
        score=lengths,
        split="test",
        step=0,
        samples=2,
        max_completion_tokens=3,
        temperature=1.0,
        seed=1,
        on_progress=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(2, 6), (4, 6), (6, 6)]


def test_a_scorer_that_loses_answers_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="6 answers were given to be graded, 5 grades"):
        run(load, lambda rollouts: [0.0] * (len(rollouts) - 1))

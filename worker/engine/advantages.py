"""From rewards to advantages: how much better an answer is than its group.

Three estimators, each a plain function over one step's groups; plain Python on plain numbers, no tokens and
no tensors here. Called once a step by `reinforcement.py`, which names the estimator its config asks for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

# Rewards closer than this are the same reward: dividing by their spread would teach rounding errors.
_SAME = 1e-8

Groups = Sequence[Sequence[float]]
"""The graded rewards of each group that teaches: at least two, not all the same."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """One list per group, in the answers' order; None where the grade is missing.

    A group without signal has zeros for its graded answers and is absent from `teaching`.
    """

    values: tuple[tuple[float | None, ...], ...]
    teaching: tuple[int, ...]


def graded(reward: float | None) -> float | None:
    """Return the reward, or None for a grade that is missing or not a finite number."""
    return reward if reward is not None and math.isfinite(reward) else None


def group_advantages(rewards: Sequence[Sequence[float | None]], estimator: str = "group_mean") -> Advantages:
    """Return the advantages of a step's answers by one of `ESTIMATORS`.

    A missing grade is left out, never counted as zero. A group with fewer than two grades, or with no spread,
    teaches nothing under any estimator.
    """
    groups = [[graded(reward) for reward in group] for group in rewards]
    present = [[reward for reward in group if reward is not None] for group in groups]
    teaching = [
        index for index, group in enumerate(present) if len(group) > 1 and max(group) - min(group) > _SAME
    ]
    everything = [reward for group in present for reward in group]
    estimates = [[0.0] * len(group) for group in present]
    if teaching:
        found = ESTIMATORS[estimator]([present[index] for index in teaching], everything)
        for index, values in zip(teaching, found, strict=True):
            estimates[index] = values
    return Advantages(
        tuple(_spread(group, values) for group, values in zip(groups, estimates, strict=True)),
        tuple(teaching),
    )


def group_mean(groups: Groups, everything: Sequence[float]) -> list[list[float]]:
    """Return A_i = (r_i - mean of the group) / standard deviation of all graded rewards of the step.

    The deviation is the batch's, not the group's: dividing by a group's own would over-weight the groups in
    which almost all answers agree.

    Shapes: P groups of G_p rewards -> the same.
    Source: arXiv:2503.20783 (Dr. GRPO) and arXiv:2510.13786 (batch normalisation).
    """
    scale = _deviation(everything)
    return [[(reward - fmean(group)) / scale for reward in group] for group in groups]


def leave_one_out(groups: Groups, _everything: Sequence[float]) -> list[list[float]]:
    """Return A_i = r_i - mean of the group's other rewards, in the rewards' own unit.

    The baseline of an answer does not know that answer's reward, so the estimate has no bias:
    A_i = G / (G - 1) · (r_i - mean).

    Shapes: P groups of G_p rewards -> the same.
    Source: arXiv:2402.14740 (RLOO).
    """
    return [[reward - (sum(group) - reward) / (len(group) - 1) for reward in group] for group in groups]


def group_normalised(groups: Groups, _everything: Sequence[float]) -> list[list[float]]:
    """Return A_i = (r_i - mean of the group) / standard deviation of the group: plain GRPO.

    The deviation divides by G, not G - 1. Every group weighs the same, however little its answers differ.

    Shapes: P groups of G_p rewards -> the same.
    Source: arXiv:2402.03300 (DeepSeekMath), section 4.1.2.
    """
    return [[(reward - fmean(group)) / _deviation(group) for reward in group] for group in groups]


ESTIMATORS: dict[str, Callable[[Groups, Sequence[float]], list[list[float]]]] = {
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "group_normalised": group_normalised,
}


def _spread(group: Sequence[float | None], values: Sequence[float]) -> tuple[float | None, ...]:
    """Put the values of the graded answers back where those answers stand."""
    rest = iter(values)
    return tuple(None if reward is None else next(rest) for reward in group)


def _deviation(rewards: Sequence[float]) -> float:
    mean = fmean(rewards)
    return math.sqrt(fmean((reward - mean) ** 2 for reward in rewards))

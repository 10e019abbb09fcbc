"""From rewards to advantages: how much better an answer is than its group.

Plain Python on plain numbers; no tokens and no tensors here. Called once a step by `reinforcement.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

# Rewards closer than this are the same reward: dividing by their spread would teach rounding errors.
_SAME = 1e-8


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


def group_advantages(rewards: Sequence[Sequence[float | None]]) -> Advantages:
    """Return A = (r - mean of the group) / standard deviation of all graded rewards of the step.

    The deviation is the batch's, not the group's: dividing by a group's own would over-weight the groups in
    which almost all answers agree. A missing grade is left out, never counted as zero.

    Source: arXiv:2503.20783 (Dr. GRPO) and arXiv:2510.13786 (batch normalisation).
    """
    groups = [[graded(reward) for reward in group] for group in rewards]
    everything = [reward for group in groups for reward in group if reward is not None]
    scale = _deviation(everything)
    values: list[tuple[float | None, ...]] = []
    teaching: list[int] = []
    for index, group in enumerate(groups):
        present = [reward for reward in group if reward is not None]
        if len(present) < 2 or max(present) - min(present) <= _SAME:
            values.append(tuple(None if reward is None else 0.0 for reward in group))
            continue
        mean = fmean(present)
        values.append(tuple(None if reward is None else (reward - mean) / scale for reward in group))
        teaching.append(index)
    return Advantages(tuple(values), tuple(teaching))


def _deviation(rewards: Sequence[float]) -> float:
    if not rewards:
        return 0.0
    mean = fmean(rewards)
    return math.sqrt(fmean((reward - mean) ** 2 for reward in rewards))

"""Rollouts to grades: what the engine calls to learn what its answers are worth.

Keeps each grade until the runner has written it down. The engine sees rewards alone; None is a missing
grade, which teaches nothing.

Source: whose fault a failed grade is, reliability.md §7.2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.graders.grade import grade
from app.graders.result import Grade
from app.graders.spec import Grader
from worker.engine.types import Rollout

Place = tuple[str, int, int, int]


def place(rollout: Rollout) -> Place:
    """Return what names a rollout within its job: split, step, item, sample."""
    return rollout.split, rollout.step, rollout.item_index, rollout.sample_index


class Scorer:
    """The score function of one job: a grader, and each split's items."""

    def __init__(
        self,
        grader: Grader,
        items: Mapping[str, Mapping[int, Mapping[str, Any]]],
        *,
        json_expected: bool,
        errors_are_zero: bool,
    ) -> None:
        self._grader = grader
        self._items = items
        self._json_expected = json_expected
        self._errors_are_zero = errors_are_zero
        self._grades: dict[Place, Grade] = {}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Grade the answers and return their rewards, None where the grade is missing."""
        return [self._reward(rollout) for rollout in rollouts]

    def take(self, rollout: Rollout) -> Grade:
        """Hand over a rollout's grade and forget it."""
        return self._grades.pop(place(rollout))

    def _reward(self, rollout: Rollout) -> float | None:
        item = self._items[rollout.split][rollout.item_index]
        result = grade(self._grader, item=item, output_text=rollout.text, json_expected=self._json_expected)
        self._grades[place(rollout)] = result
        # `zero` is OpenAI's behaviour: the grader's own error counts as a bad answer.
        if result.reward is None and self._errors_are_zero and result.fault == "grader":
            return 0.0
        return result.reward

"""Rollouts to grades: what the engine calls to learn what its answers are worth.

Grading begins when an answer ends, in a bounded number of threads, and rewards are collected in the answers'
order, so nothing a run computes depends on which grade came first. Keeps each grade until the runner has
written it down. The engine sees rewards alone; None is a missing grade, which teaches nothing.

Source: whose fault a failed grade is, reliability.md §7.2.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from app.graders.grade import grade
from app.graders.means import NO_MEANS, Means
from app.graders.result import Grade
from app.graders.spec import Grader
from worker.engine.types import Rollout
from worker.grader_faults import Limits, Tally

Place = tuple[str, int, int, int]

# Seconds before each further try of a grade whose sandbox died. Judges and endpoints try again by themselves.
BACK_OFF = (0.5, 2.0, 5.0)


def place(rollout: Rollout) -> Place:
    """Return what names a rollout within its job: split, step, item, sample."""
    return rollout.split, rollout.step, rollout.item_index, rollout.sample_index


class Scorer:
    """The score function of one job: a grader, and each split's items. Leaving its context ends its threads.

    `bad_steps` counts the latest training steps in a row that were graded badly; a resumed run hands over
    its own.
    """

    def __init__(
        self,
        grader: Grader,
        items: Mapping[str, Mapping[int, Mapping[str, Any]]],
        *,
        json_expected: bool,
        errors_are_zero: bool,
        means: Means = NO_MEANS,
        concurrency: int = 8,
        limits: Limits | None = None,
    ) -> None:
        self.bad_steps = 0
        self._grader = grader
        self._items = items
        self._json_expected = json_expected
        self._errors_are_zero = errors_are_zero
        self._means = means
        self._limits = limits or Limits()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="grader")
        self._closing = threading.Event()
        self._pending: dict[Place, Future[Grade]] = {}
        self._grades: dict[Place, Grade] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, rollout: Rollout) -> None:
        """Start to grade an answer whose reward will be asked for."""
        self._pending[place(rollout)] = self._pool.submit(self._grade, rollout)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Grade the answers of one split and step and return their rewards, None where the grade is missing.

        Raises: GraderFailing when so many grades failed that the step must not count.
        """
        for rollout in rollouts:
            if place(rollout) not in self._pending:
                self.begin(rollout)
        tally = Tally(len(rollouts))
        try:
            for rollout in rollouts:
                result = self._pending.pop(place(rollout)).result()
                self._grades[place(rollout)] = result
                tally.add(rollout, result)
                tally.check(self._limits)
        finally:
            self._forget_pending()
        rewards = [self._worth(result) for _, result in tally.graded]
        if rollouts and rollouts[0].split == "train":
            self.bad_steps = tally.streak(self.bad_steps, rewards, self._limits)
        return rewards

    def take(self, rollout: Rollout) -> Grade:
        """Hand over a rollout's grade and forget it."""
        return self._grades.pop(place(rollout))

    def _grade(self, rollout: Rollout) -> Grade:
        item = self._items[rollout.split][rollout.item_index]
        for pause in (*BACK_OFF, None):
            result = grade(
                self._grader,
                item=item,
                output_text=rollout.text,
                json_expected=self._json_expected,
                means=self._means,
            )
            again = result.fault == "infrastructure" and result.errors.python_grader_server_error
            if not again or pause is None or self._closing.wait(pause):
                break
        return result

    def _worth(self, result: Grade) -> float | None:
        # `zero` is OpenAI's behaviour: the grader's own error counts as a bad answer.
        if result.reward is None and self._errors_are_zero and result.fault == "grader":
            return 0.0
        return result.reward

    def _forget_pending(self) -> None:
        """Drop what nobody will ask for: the rest of a refused step, or answers of one that was skipped."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

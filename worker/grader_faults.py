"""When a grader fails too often to be taught from: the counts, the limits, and what the pause says.

Pure: `scoring.py` feeds it every grade, the runner writes what it raises into the job's events. An answer's
own fault is no failure of the grader and never counts here.

Source: the pause rule of reliability.md §7.2.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.graders.result import Grade, Tokens, added
from worker.engine.types import Rollout

_CONSEQUENCE = {
    "train": "The step was not applied and taught nothing.",
    "valid": "The step was not applied and taught nothing.",
    "test": "The measurement was not kept.",
}
_SAMPLES = 3
# The end of a traceback says what happened.
_SAMPLE_CHARACTERS = 1500


@dataclass(frozen=True, slots=True)
class Limits:
    """Which shares of failed grades are too many.

    Above `pause_share` a step is refused; above `bad_share`, or without a group to learn from, it is bad, and
    the last of `bad_steps` bad ones in a row is refused.
    """

    pause_share: float = 0.2
    bad_share: float = 0.1
    bad_steps: int = 3


class GraderFailing(Exception):
    """The grader failed too often for this step to count.

    `data` is for the job's event; `tokens` is what its judges were paid for nevertheless.
    """

    def __init__(self, message: str, data: Mapping[str, Any], tokens: Mapping[str, Tokens]) -> None:
        super().__init__(message)
        self.data = dict(data)
        self.tokens = tokens


def failed(grade: Grade) -> bool:
    """Say whether the grader or what it runs on failed, whatever the answer was worth then."""
    return grade.fault in ("grader", "infrastructure")


def kinds(grades: Iterable[Grade]) -> dict[str, int]:
    """Return how many grades carry each of OpenAI's error flags, the most frequent first."""
    found = Counter(
        name for grade in grades for name, value in grade.errors.to_dict().items() if value is True
    )
    return dict(found.most_common())


@dataclass(slots=True)
class Tally:
    """The grades of one pass over a split's answers: `total` are to come, `graded` came."""

    total: int
    graded: list[tuple[Rollout, Grade]] = field(default_factory=list)
    failures: list[tuple[Rollout, Grade]] = field(default_factory=list)

    def add(self, rollout: Rollout, grade: Grade) -> None:
        """Count a grade."""
        self.graded.append((rollout, grade))
        if failed(grade):
            self.failures.append((rollout, grade))

    def check(self, limits: Limits) -> None:
        """Raise GraderFailing as soon as what is still to come can't bring the share below the limit."""
        if len(self.failures) > limits.pause_share * self.total:
            raise self._refusal(f"more than {limits.pause_share:.0%} of them")

    def streak(self, before: int, rewards: Sequence[float | None], limits: Limits) -> int:
        """Return how many bad training steps in a row this one makes, after `before`.

        Raises: GraderFailing when it is one too many.
        """
        if len(self.failures) <= limits.bad_share * self.total and self._usable(rewards):
            return 0
        if before + 1 >= limits.bad_steps:
            raise self._refusal(f"the {_ordinal(before + 1)} bad step in a row")
        return before + 1

    def _usable(self, rewards: Sequence[float | None]) -> bool:
        """Say whether some prompt has the two rewards that a comparison takes, or none was expected."""
        by_item = Counter(
            rollout.item_index
            for (rollout, _), reward in zip(self.graded, rewards, strict=True)
            if reward is not None
        )
        return not self.graded or max(by_item.values(), default=0) >= 2

    def _refusal(self, why: str) -> GraderFailing:
        rollout = self.graded[-1][0]
        counts = kinds(grade for _, grade in self.failures)
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        seen = len(self.graded)
        so_far = "" if seen == self.total else f" (of the first {seen})"
        samples = _samples(self.failures)
        message = (
            f"The grader failed on {len(self.failures)} of {self.total} answers{so_far} "
            f"{_where(rollout)}, {why}{f': {listed}' if listed else ''}. {_CONSEQUENCE[rollout.split]} "
            "The job is paused: mend the cause, then resume it."
        )
        for sample in samples:
            message += f"\n\nItem {sample['item_index']}, sample {sample['sample_index']}:\n{sample['error']}"
        data = {
            "step": rollout.step,
            "split": rollout.split,
            "answers": self.total,
            "graded": seen,
            "failed": len(self.failures),
            "errors": counts,
            "samples": samples,
        }
        return GraderFailing(message, data, added(grade.usage for _, grade in self.graded))


def _samples(failures: Iterable[tuple[Rollout, Grade]]) -> list[dict[str, Any]]:
    """Return the first failures that differ in what they say."""
    found: dict[str, dict[str, Any]] = {}
    for rollout, grade in failures:
        text = _text(grade)
        found.setdefault(
            text, {"item_index": rollout.item_index, "sample_index": rollout.sample_index, "error": text}
        )
    return list(found.values())[:_SAMPLES]


def _text(grade: Grade) -> str:
    errors = grade.errors
    text = (
        errors.python_grader_runtime_error_details
        or errors.model_grader_server_error_details
        or grade.message
        or "no message"
    )
    return text if len(text) <= _SAMPLE_CHARACTERS else f"…{text[-_SAMPLE_CHARACTERS:]}"


def _where(rollout: Rollout) -> str:
    if rollout.split == "train":
        return f"of step {rollout.step}"
    return f"of step {rollout.step}'s {'validation' if rollout.split == 'valid' else 'test'}"


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"

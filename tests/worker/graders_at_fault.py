"""A grader that can be made to fail: the real one, with an outage in front of it.

Only the fault is invented. `Outage(...).install(monkeypatch)` puts it before every grade of the scorer.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from app.graders.grade import grade
from app.graders.result import Grade, GradeErrors
from worker import scoring
from worker.engine.types import Rollout

JUDGE_DOWN = Grade(
    None,
    fault="infrastructure",
    errors=GradeErrors(
        model_grader_server_error=True, model_grader_server_error_details="connection refused by the judge"
    ),
)
SANDBOX_DIED = Grade(
    None,
    fault="infrastructure",
    errors=GradeErrors(python_grader_server_error=True, python_grader_server_error_type="sandbox"),
    message="The sandbox failed: it closed its socket.",
)
CRASHED = Grade(
    None,
    fault="grader",
    errors=GradeErrors(
        python_grader_runtime_error=True,
        python_grader_runtime_error_details="Traceback:\n  line 3, in grade\nKeyError: 'answer'",
    ),
)


class Outage:
    """While `on`, grades of items for which `hits` holds are `failure`; `calls` counts every try."""

    def __init__(
        self,
        failure: Grade,
        hits: Callable[[Mapping[str, Any]], bool] = lambda _item: True,
        *,
        on: bool = True,
    ) -> None:
        self.on = on
        self.calls = 0
        self._failure = failure
        self._hits = hits
        self._lock = threading.Lock()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Outage":
        """Stand between the scorer and the grader, and let no test wait between tries."""
        monkeypatch.setattr(scoring, "grade", self)
        monkeypatch.setattr(scoring, "BACK_OFF", (0.0, 0.0))
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Grade:
        """Fail, or grade."""
        with self._lock:
            self.calls += 1
        return self._failure if self.on and self._hits(named["item"]) else grade(*arguments, **named)


def answer(
    text: str = "a", *, item: int = 0, sample: int = 0, step: int = 1, split: str = "train"
) -> Rollout:
    """Return a rollout with this text."""
    return Rollout(split, step, item, sample, 3, (1, 2), (-0.5, -0.5), text, "stop")

"""An inspection: what can be told of a grader before an answer is tried, on the first rows of a file.

Do its templates find what they name in every row, and does its Python run on a right answer? No judge and
no endpoint is asked, so it costs nothing. What a grader may hold at all is `graders.checked`. Called by the
dashboard's lab.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from app.graders.grade import grade
from app.graders.kinds import Python
from app.graders.means import Means
from app.graders.probes import right_answer
from app.graders.spec import Grader, item_fields, leaves
from app.graders.template import UnresolvedVariable, Variable
from app.services.dataset_rows import nearest
from app.services.trials import Trial

ROWS = 20
_CALLS = 3
_LINE = re.compile(r'File "grader\.py", line (\d+)')
_KEY = re.compile(r"KeyError: '([^']*)'\s*$")
_AS_JSON = 'Write the right answer as JSON too, for example {"answer": "{{item.answer}}"}.'
_Rows: TypeAlias = Sequence[tuple[int, tuple[Mapping[str, Any], str]]]
_SAMPLE_KEYS = ("output_text", "output_json", "output_tools", "choices", "output_audio")


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a grader broke: its part (None outside a multi), its line, its words, the row it was given."""

    part: str | None
    message: str
    line: int | None
    item_index: int
    item: Mapping[str, Any]
    suggestion: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, on how many rows, and where it first went wrong."""

    name: str
    rows: int
    fault: Fault | None = None
    took: float | None = None


def inspect(grader: Grader, trial: Trial, means: Means) -> list[Finding]:
    """Return what was found, in the order of the grader's own parts. Raises: ZygoteError."""
    rows = list(trial.rows.items())[:ROWS]
    found = []
    if fields := item_fields(grader):
        found.append(Finding("templates", len(rows), _unresolved(rows, [f.variable for f in fields])))
    for key, leaf in leaves(grader).items():
        if isinstance(leaf, Python):
            answers = [right_answer(grader, item, trial.reference) or "" for _, (item, _) in rows[:_CALLS]]
            found.append(_called(key, leaf, trial, rows[:_CALLS], answers, means))
    return found


def _unresolved(rows: _Rows, variables: Sequence[Variable]) -> Fault | None:
    for index, (item, _) in rows:
        for variable in variables:
            try:
                variable.resolve(item)
            except UnresolvedVariable as problem:
                key = str(variable.path[0])
                close = "" if key in item else nearest(key, item).lstrip("; .")
                return Fault(None, f"Row {index} has no `{problem.path}`.", None, index, item, close)
    return None


def _called(
    key: str | None,
    leaf: Python,
    trial: Trial,
    rows: _Rows,
    answers: Sequence[str],
    means: Means,
) -> Finding:
    name, took = "python" if key is None else f"python {key}", 0.0
    if means.python is not None and (problem := means.python.check(leaf.source)) is not None:
        index, item = (rows[0][0], rows[0][1][0]) if rows else (0, {})
        return Finding(name, len(rows), _fault(key, problem, index, item))
    for (index, (item, _)), text in zip(rows, answers, strict=True):
        done = grade(leaf, item=item, output_text=text, json_expected=trial.json_expected, means=means)
        took = max(took, done.seconds)
        if done.reward is None or done.fault == "answer":
            fault = _fault(key, done.message or "", index, item)
            if done.fault == "answer" and trial.json_expected:
                fault = replace(fault, suggestion=_AS_JSON)
            return Finding(name, len(rows), fault, took)
    return Finding(name, len(rows), None, took if rows else None)


def _fault(key: str | None, message: str, index: int, item: Mapping[str, Any]) -> Fault:
    lines = _LINE.findall(message)
    return Fault(key, message, int(lines[-1]) if lines else None, index, item, _suggestion(message, item))


def _suggestion(message: str, item: Mapping[str, Any]) -> str:
    wanted = _KEY.search(message)
    if wanted is None:
        return ""
    close = nearest(wanted[1], [*item, *_SAMPLE_KEYS]).lstrip("; .")
    return close or f"The row has {', '.join(item) or 'no keys of its own'}."

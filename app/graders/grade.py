"""The single door: `grade()` turns one answer into one Grade, and any failure into a flagged Grade.

Whose fault a failure is decides its worth. An answer that breaks its contract earns a real 0, so that the
policy gains nothing by breaking its grader; the grader's own error is missing (`reward` None), never 0.
The worker's scoring and `/graders/run` call it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from app.graders import template
from app.graders.checks import check
from app.graders.formula import FormulaError, compile_formula
from app.graders.json_text import NotJson, read_json
from app.graders.result import Grade, GradeErrors
from app.graders.similarity import similarity
from app.graders.spec import Grader, Multi, StringCheck, TextSimilarity, uses_output_json


@dataclass(frozen=True, slots=True)
class _Case:
    """What templates may read: the dataset row's fields and the answer."""

    item: Mapping[str, Any]
    sample: Mapping[str, Any]


def grade(
    grader: Grader,
    *,
    item: Mapping[str, Any],
    output_text: str,
    json_expected: bool,
    output_tools: Sequence[Mapping[str, Any]] = (),
) -> Grade:
    """Grade one answer; never raises. `json_expected` says that the job has a `response_format`."""
    return _timed(partial(_grade, grader, item, output_text, json_expected, list(output_tools)))


def _grade(
    grader: Grader, item: Mapping[str, Any], text: str, json_expected: bool, tools: list[Mapping[str, Any]]
) -> Grade:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tools:
        message["tool_calls"] = tools
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": tools,
        "choices": [{"index": 0, "message": message}],
    }
    if json_expected or uses_output_json(grader):
        try:
            sample["output_json"] = read_json(text)
        except NotJson as error:
            return _answers_fault(f"The answer is not the JSON that was asked for: {error}.")
    case = _Case(item, sample)
    return _multi(grader, case) if isinstance(grader, Multi) else _leaf(grader, case)


def _leaf(grader: StringCheck | TextSimilarity, case: _Case) -> Grade:
    try:
        text = template.parse(grader.input).render(case.item, case.sample)
        reference = template.parse(grader.reference).render(case.item, case.sample)
    except template.UnresolvedVariable as error:
        if error.namespace == "sample":
            return _answers_fault(f"The answer has no `{error.path}`.")
        return _graders_fault(
            f"The item has no `{error.path}`, which the grader '{grader.name}' reads.",
            GradeErrors(invalid_variable_error=True),
        )
    if isinstance(grader, StringCheck):
        return Grade(reward=check(grader.operation, text, reference))
    return Grade(reward=similarity(grader.evaluation_metric, text, reference))


def _multi(grader: Multi, case: _Case) -> Grade:
    parts = {key: _timed(partial(_leaf, part, case)) for key, part in grader.graders.items()}
    joined = _join(grader, parts)
    errors = joined.errors
    for part in parts.values():
        errors = errors.joined(part.errors)
    return replace(joined, part_grades=parts, errors=errors)


def _join(grader: Multi, parts: dict[str, Grade]) -> Grade:
    # An answer that lacks what one part asks for is worth 0 whatever the formula: under `1 - penalty` a part
    # of 0 would pay. It outranks a missing part, whose value could not change this.
    for fault in ("answer", "infrastructure", "grader"):
        for key, part in parts.items():
            if part.fault == fault:
                return replace(part, seconds=0.0, message=f"{key}: {part.message}")
    rewards = {key: part.reward for key, part in parts.items() if part.reward is not None}
    try:
        return Grade(reward=compile_formula(grader.calculate_output).evaluate(rewards))
    except FormulaError as error:
        return _graders_fault(f"calculate_output: {error}.", GradeErrors(formula_parse_error=True))


def _timed(run: Callable[[], Grade]) -> Grade:
    """Run one grader; the boundary where any exception becomes a flag."""
    started = time.perf_counter()
    try:
        done = run()
        if done.reward is not None and not math.isfinite(done.reward):
            done = _graders_fault(
                "The grader's reward is not a finite number.", GradeErrors(other_error=True)
            )
    except Exception as error:
        done = _graders_fault(f"{type(error).__name__}: {error}", GradeErrors(other_error=True))
    return replace(done, seconds=time.perf_counter() - started)


def _answers_fault(message: str) -> Grade:
    return Grade(
        reward=0.0, fault="answer", errors=GradeErrors(sample_parse_error=True), message=_storable(message)
    )


def _graders_fault(message: str, errors: GradeErrors) -> Grade:
    return Grade(reward=None, fault="grader", errors=errors, message=_storable(message))


def _storable(message: str) -> str:
    """Return a message any database takes: no lone surrogates, no NUL, of bounded length."""
    return message[:2000].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")

"""The single door: `grade()` turns one answer into one Grade, and any failure into a flagged Grade.

Whose fault a failure is decides its worth. An answer that breaks its contract earns a real 0, so that the
policy gains nothing by breaking its grader; the grader's own error is missing (`reward` None), never 0.
The worker's scoring and `/graders/run` call it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from app.graders import template
from app.graders.case import Case
from app.graders.checks import check
from app.graders.formula import FormulaError, compile_formula
from app.graders.json_text import NotJson, read_json
from app.graders.kinds import Endpoint, Grader, LabelModel, Leaf, Multi, Python, ScoreModel, StringCheck
from app.graders.means import NO_MEANS, Means
from app.graders.result import Grade, GradeErrors, added, answers_fault, graders_fault, infrastructure_fault
from app.graders.similarity import similarity
from app.graders.spec import uses_output_json

# Kinds that ask somebody else, and how many parts of one grader do so at once.
_WAITING = (ScoreModel, LabelModel, Endpoint)
_MOST_AT_ONCE = 16


def grade(
    grader: Grader,
    *,
    item: Mapping[str, Any],
    output_text: str,
    json_expected: bool,
    output_tools: Sequence[Mapping[str, Any]] = (),
    means: Means = NO_MEANS,
) -> Grade:
    """Grade one answer; never raises. `json_expected` says that the job has a `response_format`."""
    return _timed(partial(_grade, grader, item, output_text, json_expected, list(output_tools), means))


def _grade(
    grader: Grader,
    item: Mapping[str, Any],
    text: str,
    json_expected: bool,
    tools: list[Mapping[str, Any]],
    means: Means,
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
            return answers_fault(f"The answer is not the JSON that was asked for: {error}.")
    case = Case(item, sample)
    return _multi(grader, case, means) if isinstance(grader, Multi) else _leaf(grader, case, means)


def _leaf(grader: Leaf, case: Case, means: Means) -> Grade:
    try:
        return _graded(grader, case, means)
    except template.UnresolvedVariable as error:
        if error.namespace == "sample":
            return answers_fault(f"The answer has no `{error.path}`.")
        return graders_fault(
            f"The item has no `{error.path}`, which the grader '{grader.name}' reads.",
            GradeErrors(invalid_variable_error=True),
        )


def _graded(grader: Leaf, case: Case, means: Means) -> Grade:
    if isinstance(grader, ScoreModel | LabelModel):
        if means.judges is None:
            return _unequipped(grader, GradeErrors(model_grader_server_error=True))
        return means.judges.grade(grader, case)
    if isinstance(grader, Endpoint):
        if means.endpoints is None:
            return _unequipped(grader, GradeErrors(other_error=True))
        return means.endpoints.grade(grader, case)
    if isinstance(grader, Python):
        if means.python is None:
            return _unequipped(grader, GradeErrors(python_grader_server_error=True))
        return means.python.run(grader.source, sample=case.sample, item=case.item)
    text, reference = case.render(grader.input), case.render(grader.reference)
    if isinstance(grader, StringCheck):
        return Grade(reward=check(grader.operation, text, reference))
    return Grade(reward=similarity(grader.evaluation_metric, text, reference))


def _unequipped(grader: Leaf, errors: GradeErrors) -> Grade:
    return infrastructure_fault(f"Nothing here can run a grader of type '{grader.type}'.", errors)


def _multi(grader: Multi, case: Case, means: Means) -> Grade:
    parts = _parts(grader, case, means)
    joined = _join(grader, parts)
    errors = joined.errors
    for part in parts.values():
        errors = errors.joined(part.errors)
    usage = added(part.usage for part in parts.values())
    return replace(joined, part_grades=parts, errors=errors, usage=usage, sampled_model=None)


def _parts(grader: Multi, case: Case, means: Means) -> dict[str, Grade]:
    """Grade every part. Those that wait for a service wait side by side, the others are graded meanwhile."""
    work = {key: partial(_timed, partial(_leaf, part, case, means)) for key, part in grader.graders.items()}
    waiting = [key for key, part in grader.graders.items() if isinstance(part, _WAITING)]
    if not waiting or len(work) == 1:
        return {key: run() for key, run in work.items()}
    with ThreadPoolExecutor(min(len(waiting), _MOST_AT_ONCE), thread_name_prefix="part") as pool:
        asked = {key: pool.submit(work[key]) for key in waiting}
        done = {key: run() for key, run in work.items() if key not in asked}
        done |= {key: future.result() for key, future in asked.items()}
    return {key: done[key] for key in work}


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
        return graders_fault(f"calculate_output: {error}.", GradeErrors(formula_parse_error=True))


def _timed(run: Callable[[], Grade]) -> Grade:
    """Run one grader; the boundary where any exception becomes a flag."""
    started = time.perf_counter()
    try:
        done = run()
        if done.reward is not None and not math.isfinite(done.reward):
            done = graders_fault("The grader's reward is not a finite number.", GradeErrors(other_error=True))
    except Exception as error:
        done = graders_fault(f"{type(error).__name__}: {error}", GradeErrors(other_error=True))
    return replace(done, seconds=time.perf_counter() - started)

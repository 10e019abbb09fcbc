"""The metrics event in OpenAI's names: errors by kind, judges' tokens, latency; and the CSV's columns."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.graders.result import Grade, GradeErrors
from app.graders.spec import parse_grader
from tests.worker.graders_at_fault import CRASHED, JUDGE_DOWN, answer
from worker import metrics
from worker.engine.metrics import Measured
from worker.engine.types import EvaluationReport, ScoredRollout, StepReport
from worker.metrics import Graded

JUDGE = {
    "type": "score_model",
    "name": "kind",
    "model": "judge-1",
    "input": [{"role": "user", "content": "Is it kind? {{sample.output_text}}"}],
}
CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.letter}}",
    "operation": "eq",
}


def judged(prompt: int, completion: int, *, model: str = "judge-1", seconds: float = 0.0) -> Grade:
    """Return a grade that a judge was paid for."""
    used = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": 1,
        "total_tokens": prompt + completion,
    }
    return Grade(0.5, usage={model: used}, sampled_model=model, seconds=seconds)


def graded(grades: Sequence[Grade], split: str = "train") -> list[Graded]:
    """Return these grades' rollouts, scored."""
    return [
        Graded(ScoredRollout(answer(item=index, split=split), grade.reward, None), grade)
        for index, grade in enumerate(grades)
    ]


def event(grader: dict[str, Any], train: Sequence[Grade], valid: Sequence[Grade] = ()) -> dict[str, Any]:
    """Return the event of a step that gave these grades."""
    both = graded(train), graded(valid, "valid")
    validation = None
    if valid:
        validation = EvaluationReport(
            "valid", 1, tuple(one.scored for one in both[1]), 0.5, len(valid), 1.0, 0.5
        )
    rollouts = [one.scored.rollout for one in both[0]]
    figures = Measured().freeze(rollouts, [one.scored.reward for one in both[0]])
    report = StepReport(1, 2, tuple(one.scored for one in both[0]), validation, figures)
    return metrics.metrics(report, parse_grader(grader), *both)


def test_a_judges_errors_are_counted_by_kind_in_openais_names() -> None:
    """Counts and shares over all answers, on the side they belong to."""
    refused = Grade(None, fault="grader", errors=GradeErrors(model_grader_refusal_error=True))
    unclear = Grade(None, fault="grader", errors=GradeErrors(model_grader_parse_error=True))
    found = event(JUDGE, [JUDGE_DOWN, JUDGE_DOWN, refused, judged(1, 1)], [unclear])
    (row,) = found["errors"]["graders"]
    assert (row["name"], row["type"], row["model"]) == ("kind", "score_model", "judge-1")
    assert (row["train_model_grader_server_error_count"], row["train_model_grader_server_error_mean"]) == (
        2.0,
        0.5,
    )
    assert row["train_model_grader_refusal_error_count"] == 1.0
    assert row["train_model_grader_parse_error_count"] == 0.0
    assert row["valid_model_grader_parse_error_mean"] == 1.0
    assert "train_python_grader_runtime_error_count" not in row
    ours = found["tunesmith"]
    assert ours["grader_error_share"] == 0.75
    assert ours["grader_errors"] == {"model_grader_server_error": 2, "model_grader_refusal_error": 1}
    assert ours["valid_grader_errors"] == {"model_grader_parse_error": 1}


def test_a_plain_grader_has_only_the_errors_it_can_have() -> None:
    """Three keys a side, and no tokens."""
    found = event(
        CHECK, [Grade(1.0), Grade(0.0, fault="answer", errors=GradeErrors(sample_parse_error=True))]
    )
    (row,) = found["errors"]["graders"]
    assert {key for key in row if key.endswith("_count")} == {
        "train_other_error_count",
        "train_sample_parse_error_count",
        "train_invalid_variable_error_count",
    }
    assert found["usage"]["graders"] == []
    assert found["model_graders_token_usage"] == {}
    # An answer's own fault is no failure of the grader.
    assert found["tunesmith"]["grader_error_share"] == 0.0


def test_judges_tokens_are_counted_by_grader_and_by_model() -> None:
    """A mean over all answers, as OpenAI's own numbers have it; the model's account has all six keys."""
    found = event(JUDGE, [judged(100, 20), judged(140, 30), JUDGE_DOWN, Grade(0.5)], [judged(50, 10)])
    (row,) = found["usage"]["graders"]
    assert row == {
        "name": "kind",
        "type": "score_model",
        "model": "judge-1",
        "train_prompt_tokens_mean": 60.0,
        "train_prompt_tokens_count": 240.0,
        "train_completion_tokens_mean": 12.5,
        "train_completion_tokens_count": 50.0,
        "valid_prompt_tokens_mean": 50.0,
        "valid_prompt_tokens_count": 50.0,
        "valid_completion_tokens_mean": 10.0,
        "valid_completion_tokens_count": 10.0,
    }
    assert found["model_graders_token_usage"] == {
        "judge-1": {
            "eval_cached_tokens": 1,
            "eval_prompt_tokens": 50,
            "eval_completion_tokens": 10,
            "train_cached_tokens": 2,
            "train_prompt_tokens": 240,
            "train_completion_tokens": 50,
        }
    }


def test_a_multi_graders_parts_stand_apart_and_its_models_are_counted_once() -> None:
    """Two judges on one model: a row each, one account."""
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": CHECK, "kind": JUDGE, "short": JUDGE | {"name": "short"}},
        "calculate_output": "exact + kind + short",
    }
    parts = {"exact": Grade(1.0, seconds=0.5), "kind": judged(10, 1, seconds=1.5), "short": judged(20, 2)}
    total = {"judge-1": {"prompt_tokens": 30, "completion_tokens": 3, "cached_tokens": 2, "total_tokens": 33}}
    found = event(grader, [Grade(2.0, part_grades=parts, usage=total)])
    assert [row["name"] for row in found["errors"]["graders"]] == ["exact", "kind", "short"]
    assert [row["train_prompt_tokens_count"] for row in found["usage"]["graders"]] == [10.0, 20.0]
    assert [row["train_execution_latency_mean"] for row in found["timing"]["graders"]] == [0.5, 1.5, 0.0]
    assert found["model_graders_token_usage"]["judge-1"]["train_prompt_tokens"] == 30


def test_the_csv_has_a_column_for_each_grader_and_error() -> None:
    """OpenAI's column names; an error that a later step counts too is in the same column."""
    steps = [event(JUDGE, [JUDGE_DOWN, judged(1, 1)]), event(JUDGE, [judged(1, 1)])]
    rows = list(csv.DictReader(io.StringIO(metrics.result_csv(steps).decode())))
    column = "errors/graders/kind/train_model_grader_server_error_count"
    assert [float(row[column]) for row in rows] == [1.0, 0.0]


def test_a_grader_that_was_too_slow_is_told_from_one_that_failed() -> None:
    """Also as a part of a multi grader."""
    late = replace(CRASHED, timed_out=True)
    found = event(CHECK, [late, CRASHED, replace(CRASHED, part_grades={"slow": late}), Grade(1.0)])
    assert found["tunesmith"]["grader_timeout_share"] == 0.5
    assert found["tunesmith"]["grader_error_share"] == 0.75


@pytest.mark.parametrize(("grades", "share"), [([CRASHED, Grade(1.0)], 0.5), ([], 0.0)])
def test_the_share_of_failures_is_over_the_answers_there_are(grades: list[Grade], share: float) -> None:
    """A step that was skipped has none."""
    assert event(CHECK, grades)["tunesmith"]["grader_error_share"] == share


def test_a_step_s_own_figures_stand_under_our_key() -> None:
    """By these names, whatever else comes: dashboards and scripts read them."""
    assert {
        "pct_no_signal",
        "sampler_trainer_kl",
        "entropy",
        "clip_fraction",
        "grad_norm",
        "tokens_per_second",
        "truncated_fraction",
        "sampling_seconds",
        "grading_seconds",
        "training_seconds",
        "evaluation_seconds",
    } <= event(CHECK, [Grade(1.0)])["tunesmith"].keys()

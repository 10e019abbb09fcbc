"""What a step tells the world: the metrics event of OpenAI's RFT jobs, its message, and the result CSV.

Pure functions over reports and grades; the runner writes what they return.

Source: the metrics events and result files of the RFT guide (both name families, `*_mean_reward` and
`*_reward_mean`). Our own figures stand under the key `tunesmith`.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.graders.result import Grade, Tokens, added
from app.graders.spec import Grader, leaves
from app.services.evaluations import bootstrap
from worker.engine.types import ScoredRollout, StepReport
from worker.grader_faults import failed, kinds

_ERRORS = ("other_error", "sample_parse_error", "invalid_variable_error")
_JUDGE_ERRORS = ("model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error")
# What a kind of grader can also suffer, by its type.
_ERRORS_OF = {
    "python": ("python_grader_server_error", "python_grader_runtime_error"),
    "score_model": _JUDGE_ERRORS,
    "label_model": _JUDGE_ERRORS,
}
_JUDGES = frozenset({"score_model", "label_model"})


@dataclass(frozen=True, slots=True)
class Graded:
    """A scored rollout beside its grade."""

    scored: ScoredRollout
    grade: Grade


def metrics(
    report: StepReport, grader: Grader, train: Sequence[Graded], valid: Sequence[Graded]
) -> dict[str, Any]:
    """Return the `data` of a step's metrics event; `valid_*` keys only on steps that validated."""
    figures = report.metrics
    data: dict[str, Any] = {
        "step": report.step,
        "total_steps": report.total_steps,
        "usage": {
            "graders": [
                row for row in _merge(grader, train, valid, _usage_figures) if row["type"] in _JUDGES
            ],
            "samples": {},
        },
        "errors": {"graders": _merge(grader, train, valid, _error_figures)},
        "scores": {"graders": _merge(grader, train, valid, _reward_figures)},
        "timing": {
            "step": {
                "eval": figures.evaluation_seconds,
                "sampling": figures.sampling_seconds,
                "training": figures.training_seconds,
                "full_iteration": figures.iteration_seconds,
            },
            "graders": _merge(grader, train, valid, _latency_figures),
        },
        "model_graders_token_usage": _tokens_by_model(train, valid),
    }
    if report.step:
        data |= {
            "train_mean_reward": figures.reward_mean,
            "completion_tokens_mean": figures.completion_tokens_mean,
            "reasoning_tokens_mean": 0.0,
            "mean_unresponsive_rewards": 0.0,
        }
        data["scores"]["train_reward_mean"] = figures.reward_mean
        data["usage"]["samples"] |= {"train_reasoning_tokens_mean": 0.0, "train_reasoning_tokens_count": 0.0}
    if report.validation is not None:
        data |= {
            "full_valid_mean_reward": report.validation.reward_mean,
            "full_valid_mean_parse_error": _share(one.grade.errors.sample_parse_error for one in valid),
            "valid_reasoning_tokens_mean": 0.0,
        }
        data["scores"]["valid_reward_mean"] = report.validation.reward_mean
        data["usage"]["samples"] |= {"valid_reasoning_tokens_mean": 0.0, "valid_reasoning_tokens_count": 0.0}
    data["tunesmith"] = _extension(report, train, valid)
    return data


def message(data: Mapping[str, Any]) -> str:
    """Return the sentence of a metrics event, with OpenAI's space before its first comma."""
    text = f"Step {data['step']}/{data['total_steps']} "
    for name, key in (
        ("train mean reward", "train_mean_reward"),
        ("full validation mean reward", "full_valid_mean_reward"),
        ("full validation mean parse error", "full_valid_mean_parse_error"),
    ):
        if data.get(key) is not None:
            text += f", {name}={data[key]:.2f}"
    return text


def grader_tokens(graded: Iterable[Graded]) -> dict[str, Tokens]:
    """Return the tokens that judges were paid for, by model."""
    return added(one.grade.usage for one in graded)


def checkpoint_metrics(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures a checkpoint carries."""
    keys = ("step", "train_mean_reward", "full_valid_mean_reward", "completion_tokens_mean")
    return {key: data[key] for key in keys if data.get(key) is not None}


def result_csv(steps: Iterable[Mapping[str, Any]]) -> bytes:
    """Return `step_metrics.csv` from each step's metrics.

    Source: column names of Azure's RFT result files; their order is ours, as OpenAI publishes none.
    """
    columns = [
        "step",
        "train_mean_reward",
        "full_valid_mean_reward",
        "completion_tokens_mean",
        "reasoning_tokens_mean",
        "mean_unresponsive_rewards",
    ]
    rows = []
    errors: set[str] = set()
    for data in steps:
        row = {name: data.get(name) for name in columns}
        for part in data["errors"]["graders"]:
            counts = {k: v for k, v in part.items() if k.startswith("train_") and k.endswith("_count")}
            row |= {f"errors/graders/{part['name']}/{name}": value for name, value in counts.items()}
        errors |= row.keys() - set(columns)
        rows.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, *sorted(errors)], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return out.getvalue().encode()


def _extension(report: StepReport, train: Sequence[Graded], valid: Sequence[Graded]) -> dict[str, Any]:
    figures = report.metrics
    interval = None
    if by_item := _item_means(valid):
        whole = bootstrap(by_item)
        interval = [whole.low, whole.high]
    return {
        "valid_ci95": interval,
        "valid_count": len(valid),
        "graded": figures.graded,
        "groups": figures.groups,
        "groups_without_signal": figures.groups_without_signal,
        "pct_no_signal": figures.pct_no_signal,
        "grader_error_share": _share(failed(one.grade) for one in train),
        "grader_timeout_share": _share(_timed_out(one.grade) for one in train),
        "grader_errors": kinds(one.grade for one in train),
        "valid_grader_errors": kinds(one.grade for one in valid),
        "loss": figures.loss,
        "grad_norm": figures.grad_norm,
        "kl": figures.kl,
        "sampler_trainer_kl": figures.sampler_trainer_kl,
        "entropy": figures.entropy,
        "clip_fraction": figures.clip_fraction,
        "truncated_fraction": figures.truncated_fraction,
        "tokens_per_second": figures.tokens_per_second,
        "learning_rate": figures.learning_rate,
        "skipped": figures.skipped,
        "sampling_seconds": figures.sampling_seconds,
        "grading_seconds": figures.grading_seconds,
        "training_seconds": figures.training_seconds,
        "evaluation_seconds": figures.evaluation_seconds,
    }


def _timed_out(grade: Grade) -> bool:
    return grade.timed_out or any(part.timed_out for part in grade.part_grades.values())


def _item_means(graded: Sequence[Graded]) -> list[float]:
    by_item: dict[int, list[float]] = {}
    for one in graded:
        if one.scored.reward is not None:
            by_item.setdefault(one.scored.rollout.item_index, []).append(one.scored.reward)
    return [sum(rewards) / len(rewards) for _, rewards in sorted(by_item.items())]


def _merge(grader: Grader, train: Sequence[Graded], valid: Sequence[Graded], figures: Any) -> list[Any]:
    """Return one object for each grader, a multi's parts apart, with both splits' figures."""
    rows = []
    for key, leaf in leaves(grader).items():
        row: dict[str, Any] = {"name": key or leaf.name, "type": leaf.type}
        if leaf.type in _JUDGES:
            row["model"] = getattr(leaf, "model", None)
        for split, graded in (("train", train), ("valid", valid)):
            grades = [one.grade if key is None else one.grade.part_grades.get(key) for one in graded]
            if found := [grade for grade in grades if grade is not None]:
                row |= {f"{split}_{name}": value for name, value in figures(found, leaf.type).items()}
        rows.append(row)
    return rows


def _reward_figures(grades: Sequence[Grade], _kind: str) -> dict[str, float | None]:
    rewards = [grade.reward for grade in grades if grade.reward is not None]
    return {"reward_mean": sum(rewards) / len(rewards) if rewards else None}


def _latency_figures(grades: Sequence[Grade], _kind: str) -> dict[str, float]:
    return {"execution_latency_mean": sum(grade.seconds for grade in grades) / len(grades)}


def _usage_figures(grades: Sequence[Grade], _kind: str) -> dict[str, float]:
    total = added({"": tokens} for grade in grades for tokens in grade.usage.values()).get("", {})
    figures: dict[str, float] = {}
    for name in ("prompt_tokens", "completion_tokens"):
        count = float(total.get(name, 0))
        figures |= {f"{name}_mean": count / len(grades), f"{name}_count": count}
    return figures


def _tokens_by_model(train: Sequence[Graded], valid: Sequence[Graded]) -> dict[str, dict[str, int]]:
    """Return each judge model's tokens, `train_*` and `eval_*`, all keys for every model."""
    by_model: dict[str, dict[str, int]] = {}
    sides = {"eval": grader_tokens(valid), "train": grader_tokens(train)}
    for model in sorted({model for side in sides.values() for model in side}):
        by_model[model] = {
            f"{side}_{name}": used.get(model, {}).get(name, 0)
            for name in ("cached_tokens", "prompt_tokens", "completion_tokens")
            for side, used in sides.items()
        }
    return by_model


def _error_figures(grades: Sequence[Grade], kind: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in (*_ERRORS, *_ERRORS_OF.get(kind, ())):
        count = float(sum(bool(getattr(grade.errors, name)) for grade in grades))
        figures |= {f"{name}_mean": count / len(grades), f"{name}_count": count}
    return figures


def _share(claims: Iterable[bool]) -> float:
    found = list(claims)
    return sum(found) / len(found) if found else 0.0

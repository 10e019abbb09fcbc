"""Schemas of what a job leaves, which services keep as plain data: rollouts, the evaluation and its items."""

from app.api.document_schema import Schema, closed, list_of, nullable, reference, text

_NUMBER, _COUNT = {"type": "number"}, {"type": "integer", "minimum": 0}
_SCORE = nullable(_NUMBER)
_INTERVAL = closed(
    {"mean": _NUMBER, "ci95": {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}}
)
_SPLIT = text(enum=["train", "valid", "test"])


def components() -> dict[str, Schema]:
    """Return the schemas by their names in the document."""
    return {
        "Evaluation": _evaluation(),
        "EvaluationItems": list_of(_evaluation_item()),
        "Rollouts": list_of(_rollout()),
        "Trial": _trial(),
    }


def _trial() -> Schema:
    rows = {"type": "array", "items": {"type": "object"}}
    return closed(
        {
            "object": text(const="grader.trial"),
            "grader": reference("Grader"),
            "n": _COUNT,
            "rewards": {"type": "object"},
            "prompts": {"type": "object"},
            "latency": {"type": "object"},
            "errors": rows,
            "probes": rows,
            "model_grader_token_usage_per_model": {"type": "object"},
            "results": rows,
        }
    )


def _evaluation() -> Schema:
    return closed(
        {
            "object": text(const="fine_tuning.job.evaluation"),
            "split": text(enum=["test", "valid"]),
            "n": _COUNT,
            "base": _INTERVAL,
            "tuned": _INTERVAL,
            "difference": _INTERVAL,
            "fixed": _COUNT,
            "broken": _COUNT,
            "items": text(),
            "step": _COUNT,
            "provisional": {"type": "boolean"},
            "bootstrap_seed": _COUNT,
        }
    )


def _evaluation_item() -> Schema:
    return closed(
        {
            "object": text(const="fine_tuning.job.evaluation.item"),
            "split": text(enum=["test", "valid"]),
            "item_index": _COUNT,
            "base": _NUMBER,
            "tuned": _NUMBER,
            "change": text(enum=["fixed", "broken", "same"]),
        }
    )


def _rollout() -> Schema:
    return closed(
        {
            "object": text(const="fine_tuning.job.rollout"),
            "id": text(),
            "step": _COUNT,
            "split": _SPLIT,
            "item_index": _COUNT,
            "sample_index": _COUNT,
            "completion": text(),
            "reward": _SCORE,
            "grader_rewards": {"type": "object", "additionalProperties": _SCORE},
            "errors": {"type": "object", "additionalProperties": {"type": ["boolean", "string", "null"]}},
            "advantage": _SCORE,
            "finish_reason": text(),
            "tokens": closed({"prompt": _COUNT, "completion": _COUNT}),
        }
    )

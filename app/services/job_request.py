"""The body of a job creation: which keys there are, what each may hold, and what it becomes.

Reads the wire's JSON and no database; what names other objects (model, files) is checked by `jobs.py`.

Source: https://platform.openai.com/docs/api-reference/fine-tuning/create
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core import fields
from app.core.methods import parse_hyperparameters
from app.core.refusals import invalid, missing, refuse_unknown, unsupported, wrong_type, wrong_value
from app.core.response_format import parse_response_format
from app.graders.spec import dump, parse_grader, uses_output_json

MAX_SEED = 2_147_483_647
FILES = ("training_file", "validation_file", "test_file")

_KEYS = frozenset(
    {"model", *FILES, "suffix", "seed", "integrations", "metadata", "hyperparameters", "method"}
)
_METHOD_KEYS = frozenset({"type", "reinforcement", "supervised", "dpo"})
_REINFORCEMENT_KEYS = frozenset({"grader", "hyperparameters", "response_format", "grader_error_policy"})


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A well-formed request. `warnings` become the job's first events."""

    model: str
    files: Mapping[str, str | None]
    suffix: str | None
    seed: int
    labels: dict[str, Any] | None
    method: dict[str, Any]
    warnings: tuple[str, ...]


def parse_job_request(body: Mapping[str, Any]) -> JobRequest:
    """Return the request in `body`. Raises: InvalidRequest naming the parameter and the cure."""
    refuse_unknown(body, _KEYS)
    model = _text(body, "model")
    files = {"training_file": _text(body, "training_file")} | {
        key: None if body.get(key) is None else _text(body, key) for key in FILES[1:]
    }
    method, warnings = _method(body)
    if body.get("integrations"):
        raise unsupported("no integration is offered here; leave the key out.", "integrations")
    return JobRequest(
        model=model,
        files=files,
        suffix=_suffix(body.get("suffix")),
        seed=_seed(body.get("seed")),
        labels=_labels(body.get("metadata")),
        method=method,
        warnings=warnings,
    )


def _method(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if body.get("hyperparameters"):
        raise unsupported(
            "'hyperparameters' at the top level belongs to supervised fine-tuning, which is not offered "
            "here. Put them into 'method.reinforcement.hyperparameters'.",
            "hyperparameters",
        )
    method = body.get("method")
    if method is None:
        raise unsupported(
            "a job without a 'method' is supervised fine-tuning, which is not offered here. "
            "Set 'method.type' to 'reinforcement'.",
            "method",
        )
    if not isinstance(method, Mapping):
        raise wrong_type("an object", method, "method")
    kind = method.get("type")
    if kind is None:
        raise missing("method.type")
    if kind in ("supervised", "dpo"):
        raise unsupported(f"'{kind}' is not offered here; 'reinforcement' is.", "method.type")
    if kind != "reinforcement":
        raise wrong_value(str(kind), ("reinforcement",), "method.type")
    refuse_unknown(method, _METHOD_KEYS, "method.")
    return _reinforcement(method.get("reinforcement"), "method.reinforcement")


def _reinforcement(value: object, param: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    if value is None:
        raise missing(param)
    if not isinstance(value, Mapping):
        raise wrong_type("an object", value, param)
    refuse_unknown(value, _REINFORCEMENT_KEYS, f"{param}.")
    if value.get("grader") is None:
        raise missing(f"{param}.grader")
    grader = parse_grader(value["grader"], param=f"{param}.grader")
    answer_format = parse_response_format(value.get("response_format"), param=f"{param}.response_format")
    parsed: dict[str, Any] = {
        "grader": dump(grader),
        "hyperparameters": parse_hyperparameters(
            value.get("hyperparameters"), param=f"{param}.hyperparameters"
        ),
        "response_format": answer_format,
    }
    policy = value.get("grader_error_policy")
    if policy is not None:
        if policy not in ("exclude", "zero"):
            raise wrong_value(str(policy), ("exclude", "zero"), f"{param}.grader_error_policy")
        parsed["grader_error_policy"] = policy
    warnings: tuple[str, ...] = ()
    if uses_output_json(grader) and answer_format is None:
        warnings = (
            "The grader reads sample.output_json but the job sets no response_format: "
            "an answer that is not JSON scores 0.",
        )
    return {"type": "reinforcement", "reinforcement": parsed}, warnings


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        raise missing(key)
    if not isinstance(value, str):
        raise wrong_type("a string", value, key)
    return value


def _suffix(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type("a string", value, "suffix")
    if not 1 <= len(value) <= 64:
        raise invalid("it must be 1 to 64 characters long", "suffix")
    return value


def _seed(value: object) -> int:
    if value is None:
        return secrets.randbelow(MAX_SEED + 1)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type("an integer", value, "seed")
    if not 0 <= value <= MAX_SEED:
        raise invalid(f"it must be between 0 and {MAX_SEED}", "seed")
    return value


def _labels(value: object) -> dict[str, Any] | None:
    return None if value is None else fields.metadata(value, "metadata")

"""Schemas of a job's request and of the parts that requests and jobs share: method, graders.

What a request gives is `New…`, what a job has stands under the plain name. Read by `document_shapes.py`.
"""

from copy import deepcopy
from typing import Any

from pydantic import TypeAdapter

from app.api.document_schema import Schema, closed, nullable, reference, text
from app.core.methods import REASONING_EFFORTS, REINFORCEMENT
from app.graders.spec import Grader

_ANY_OBJECT = {"type": "object"}
_METADATA = {
    "type": "object",
    "maxProperties": 16,
    "propertyNames": {"maxLength": 64},
    "additionalProperties": text(maxLength=512),
}
METHOD = closed({"type": text(enum=["reinforcement"]), "reinforcement": reference("Reinforcement")})
_NEW_METHOD = closed({"type": text(enum=["reinforcement"]), "reinforcement": reference("NewReinforcement")})
_FORMAT = {
    "description": "Chat Completions' shape, or the flat one of Responses; an answer always has the former.",
    "type": "object",
    "properties": {"type": text(enum=["json_schema", "json_object", "text"]), "json_schema": _ANY_OBJECT},
    "required": ["type"],
}
_SAVED = closed(
    {"type": text(const="saved"), "id": text(), "version": nullable({"type": "integer"})},
    optional=("version",),
    description="Extension: a saved grader's content stands in its place; without a version, the latest.",
)


def components() -> dict[str, Schema]:
    """Return the schemas by their names in the document."""
    return {
        "NewJob": _new_job(),
        "Reinforcement": _reinforcement(given=False),
        "NewReinforcement": _reinforcement(given=True),
        "Hyperparameters": _hyperparameters(given=False),
        "NewHyperparameters": _hyperparameters(given=True),
        **_graders(),
    }


def _new_job() -> Schema:
    optional = {
        "validation_file": nullable(text()),
        "test_file": nullable(
            text(description="Extension: scored by base and tuned model, never trained on.")
        ),
        "suffix": nullable(text(minLength=1, maxLength=64)),
        "seed": nullable({"type": "integer", "minimum": 0, "maximum": 2_147_483_647}),
        "metadata": nullable(_METADATA),
        "integrations": nullable({"type": "array", "maxItems": 0}),
    }
    properties = {"model": text(), "training_file": text(), "method": _NEW_METHOD, **optional}
    return closed(properties, optional=tuple(optional))


def _reinforcement(*, given: bool) -> Schema:
    """Return `method.reinforcement`, as a request may give it or as a job has it."""
    start = "New" if given else ""
    hyperparameters = reference(f"{start}Hyperparameters")
    properties = {
        "grader": reference(f"{start}Grader"),
        "hyperparameters": nullable(hyperparameters) if given else hyperparameters,
        "response_format": nullable(_FORMAT),
        "grader_error_policy": text(enum=["exclude", "zero"], description="Extension."),
    }
    optional = tuple(name for name in properties if name != "grader") if given else ("grader_error_policy",)
    return closed(properties, optional=optional)


def _hyperparameters(*, given: bool) -> Schema:
    numbers: Schema = {}
    for one in REINFORCEMENT:
        low = "exclusiveMinimum" if one.above_low else "minimum"
        number: Schema = {"type": one.kind, low: one.low}
        if one.high < float("inf"):
            number["maximum"] = one.high
        choices = [number, {"const": "auto"}, *([{"type": "null"}] if given else [])]
        numbers[one.name] = {"anyOf": choices, **({"description": "Extension."} if one.extension else {})}
    numbers["reasoning_effort"] = text(enum=list(REASONING_EFFORTS))
    extensions = tuple(one.name for one in REINFORCEMENT if one.extension)
    return closed(numbers, optional=tuple(numbers) if given else extensions)


def _graders() -> dict[str, Schema]:
    """Return the union of graders as answers have it (`Grader`) and as requests may give it (`NewGrader`)."""
    full = TypeAdapter[Any](Grader).json_schema(ref_template="#/components/schemas/{model}")
    named: dict[str, Schema] = {name: deepcopy(schema) for name, schema in full.pop("$defs").items()}
    loose = {f"New{name}": _renamed(schema, tuple(named)) for name, schema in named.items()}
    for schema in loose.values():
        schema["required"] = [name for name in schema.get("required", []) if name != "name"]
    loose["NewSavedGrader"] = _SAVED
    allowed = _renamed(full, tuple(named))
    for union in (allowed, loose["NewMulti"]["properties"]["graders"]["additionalProperties"]):
        union["oneOf"].append(reference("NewSavedGrader"))
        union["discriminator"]["mapping"]["saved"] = "#/components/schemas/NewSavedGrader"
    about = (
        "`name` may be left out. Also taken: `neq` for `ne`, a `pass_threshold`, which training ignores, "
        "`multi.graders` as a list of named graders, `max_completion_tokens` for `max_completions_tokens`, "
        "and a judge's message whose content is one part or a list of strings."
    )
    return {
        **named,
        **loose,
        "Grader": full,
        "NewGrader": {**allowed, "description": about},
    }


def _renamed(schema: Any, names: tuple[str, ...]) -> Any:
    if isinstance(schema, list):
        return [_renamed(one, names) for one in schema]
    if isinstance(schema, dict):
        return {key: _renamed(one, names) for key, one in schema.items()}
    for name in names:
        if schema == f"#/components/schemas/{name}":
            return f"#/components/schemas/New{name}"
    return schema

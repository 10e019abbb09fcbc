"""The `response_format` of a job: both of its wire shapes in, one out, and its JSON schema.

The schema is compiled once at creation, so that a schema the sampler could not follow is a 400.

Source: OpenAI's Chat Completions shape; the flat Responses shape is accepted too.
"""

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from app.core.refusals import invalid, missing, refuse_unknown, wrong_type, wrong_value

# What may stand beside a schema.
_BESIDE: dict[str, tuple[type, str]] = {
    "name": (str, "a string"),
    "strict": (bool, "a boolean"),
    "description": (str, "a string"),
}


def parse_response_format(value: object, *, param: str) -> dict[str, Any] | None:
    """Return the Chat Completions shape, or None for plain text.

    Raises: InvalidRequest naming the field that is missing or the schema's fault.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise wrong_type("an object", value, param)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        raise wrong_value(str(kind), ("json_schema", "json_object", "text"), f"{param}.type")
    nested = value.get("json_schema")
    if nested is None:
        return _json_schema({key: content for key, content in value.items() if key != "type"}, param)
    if not isinstance(nested, Mapping):
        raise wrong_type("an object", nested, f"{param}.json_schema")
    refuse_unknown(value, {"type", "json_schema"}, f"{param}.")
    return _json_schema(nested, f"{param}.json_schema")


def _json_schema(inner: Mapping[str, Any], param: str) -> dict[str, Any]:
    refuse_unknown(inner, {"json_schema", "schema", *_BESIDE}, f"{param}.")
    body = {key: inner[key] for key in _BESIDE if inner.get(key) is not None}
    for key, content in body.items():
        kind, words = _BESIDE[key]
        if not isinstance(content, kind):
            raise wrong_type(words, content, f"{param}.{key}")
    where, schema = f"{param}.schema", inner.get("schema")
    if schema is None:
        raise missing(where)
    if not isinstance(schema, Mapping):
        raise wrong_type("an object", schema, where)
    _check_schema(schema, where)
    return {
        "type": "json_schema",
        "json_schema": {"name": body.pop("name", None) or "answer", "schema": dict(schema), **body},
    }


def schema_of(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON schema answers must follow, or None when they are free text."""
    if response_format is None:
        return None
    if response_format["type"] == "json_object":
        return {"type": "object"}
    schema: dict[str, Any] = response_format["json_schema"]["schema"]
    return schema


def _check_schema(schema: Mapping[str, Any], param: str) -> None:
    try:
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    except ValueError as refusal:
        problem = str(refusal)
    if problem:
        reason = problem.strip().splitlines()[0]
        raise invalid(f"the schema can't be followed: {reason}", param)

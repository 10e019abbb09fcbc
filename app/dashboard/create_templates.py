"""Ready graders and response formats the create form offers to start from."""

import json
from typing import Any

from app.dashboard.contexts import Choice


def _schema(**fields: str) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {name: {"type": kind} for name, kind in fields.items()},
                "required": list(fields),
                "additionalProperties": False,
            },
        },
    }


GRADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": (
        "Exact match of a JSON field",
        {
            "type": "string_check",
            "name": "exact",
            "operation": "eq",
            "input": "{{sample.output_json.answer}}",
            "reference": "{{item.answer}}",
        },
    ),
    "contains": (
        "The answer contains the reference",
        {
            "type": "string_check",
            "name": "contains",
            "operation": "ilike",
            "input": "{{sample.output_text}}",
            "reference": "{{item.answer}}",
        },
    ),
    "similar": (
        "Similar text",
        {
            "type": "text_similarity",
            "name": "similar",
            "evaluation_metric": "fuzzy_match",
            "input": "{{sample.output_text}}",
            "reference": "{{item.answer}}",
        },
    ),
    "multi": (
        "Several graders, weighted",
        {
            "type": "multi",
            "name": "exact and close",
            "graders": {
                "exact": {
                    "type": "string_check",
                    "name": "exact",
                    "operation": "eq",
                    "input": "{{sample.output_json.answer}}",
                    "reference": "{{item.answer}}",
                },
                "close": {
                    "type": "text_similarity",
                    "name": "close",
                    "evaluation_metric": "fuzzy_match",
                    "input": "{{sample.output_json.answer}}",
                    "reference": "{{item.answer}}",
                },
            },
            "calculate_output": "0.8 * exact + 0.2 * close",
        },
    ),
}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "one": ("One text field, answer", _schema(answer="string")),
    "two": ("A reason, then the answer", _schema(reason="string", answer="string")),
}
GRADER_CHOICES = tuple(Choice(key, label) for key, (label, _) in GRADERS.items())
FORMAT_CHOICES = tuple(Choice(key, label) for key, (label, _) in FORMATS.items())


def pretty(value: Any) -> str:
    """Return JSON as a person would write it."""
    return json.dumps(value, indent=2, ensure_ascii=False)


# What a fresh form holds: a grader that works on free text, so that nothing else must be filled in.
FIRST = {"grader": pretty(GRADERS["contains"][1])}


def as_json() -> str:
    """Return all templates for the form's script: texts by kind and key."""
    texts = {
        "grader": {key: pretty(value) for key, (_, value) in GRADERS.items()},
        "response_format": {key: pretty(value) for key, (_, value) in FORMATS.items()},
    }
    # A closing tag inside a script element would end it.
    return json.dumps(texts).replace("<", "\\u003c")

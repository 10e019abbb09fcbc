"""Pydantic's findings about a malformed grader, in the words of `core.refusals`.

Which values are right is decided in `spec` and `leniency`.
"""

from typing import Any

from pydantic_core import ErrorDetails

from app.core.errors import InvalidRequest
from app.core.refusals import invalid, missing, unknown, wrong_type, wrong_value

_EXPECTED = {
    "string_type": "a string",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "an array",
    "bool_type": "a boolean",
    "int_type": "an integer",
    "float_type": "a number",
}


def refusal(detail: ErrorDetails, param: str) -> InvalidRequest:
    """Return the refusal of one pydantic finding at `param`."""
    kind, given = detail["type"], detail["input"]
    if kind == "missing":
        return missing(param)
    if kind == "extra_forbidden":
        return unknown(param)
    if kind == "literal_error" and isinstance(given, str):
        return wrong_value(given, _expected_values(detail), param)
    if kind == "literal_error":
        return wrong_type("a string", given, param)
    if kind in _EXPECTED:
        return wrong_type(_EXPECTED[kind], given, param)
    return invalid(detail["msg"], param)


def _expected_values(detail: ErrorDetails) -> list[str]:
    context: dict[str, Any] = detail.get("ctx", {})
    # Pydantic writes them as `'eq', 'ne' or 'like'`: the odd pieces between quotes are the values.
    return str(context.get("expected", "")).split("'")[1::2]

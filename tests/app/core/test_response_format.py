"""A job's `response_format`: both wire shapes give one, and a field of another type is named by its path."""

from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.response_format import parse_response_format

SCHEMA = {"type": "object"}


def shapes(fields: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the nested and the flat shape of the same fields, each with where its fields lie."""
    return [
        ("r.json_schema", {"type": "json_schema", "json_schema": fields}),
        ("r", {"type": "json_schema", **fields}),
    ]


def test_both_shapes_become_the_nested_one() -> None:
    fields = {"name": "order", "schema": SCHEMA, "strict": True, "description": "An order."}
    for _, given in shapes(fields):
        assert parse_response_format(given, param="r") == {"type": "json_schema", "json_schema": fields}


def test_what_is_null_is_left_out_and_a_name_is_given() -> None:
    for _, given in shapes({"name": None, "schema": SCHEMA, "strict": None, "description": None}):
        parsed = parse_response_format(given, param="r")
        assert parsed == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", 5, "expected a string, but got an integer"),
        ("name", False, "expected a string, but got a boolean"),
        ("strict", "yes", "expected a boolean, but got a string"),
        ("strict", 1, "expected a boolean, but got an integer"),
        ("description", [], "expected a string, but got an array"),
    ],
)
def test_a_field_of_another_type_is_refused(key: str, value: object, words: str) -> None:
    for place, given in shapes({"name": "order", "schema": SCHEMA, key: value}):
        with pytest.raises(InvalidRequest, match=words) as refused:
            parse_response_format(given, param="r")
        assert (refused.value.param, refused.value.code) == (f"{place}.{key}", "invalid_type")


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"type": "json_schema", "json_schema": 5}, "f.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, "f.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": 5}}, "f.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA, "name": 5}}, "f.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": "yes"}}, "f.json_schema.strict"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA, "colour": 1}}, "f.json_schema.colour"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}, "colour": 1}, "f.colour"),
        ({"type": "json_schema"}, "f.schema"),
        ({"type": "json_schema", "schema": SCHEMA, "colour": 1}, "f.colour"),
        ({"type": "xml"}, "f.type"),
        ("json_object", "f"),
    ],
)
def test_what_is_odd_is_named(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_response_format(value, param="f")
    assert caught.value.param == param

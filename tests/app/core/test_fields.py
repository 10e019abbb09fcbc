"""Fields: each wrong value is refused by name, in OpenAI's words and codes; null is the same as absent."""

from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.fields import METADATA, Absent, Flag, Inner, Integer, Number, Text, Word, read, schema_of

FIELDS = {
    "temperature": Number(0, 2),
    "n": Integer(1, 4),
    "store": Flag(),
    "user": Text(5),
    "effort": Word(("low", "high")),
    "options": Inner({"usage": Flag(), "kind": Word(("a",))}, required=("kind",)),
    "metadata": METADATA,
    "audio": Absent("no audio is offered here.", harmless=(False,)),
}


def _refused(body: dict[str, Any]) -> tuple[str | None, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        read(FIELDS, body)
    return caught.value.param, caught.value.code


def test_good_values_and_nulls() -> None:
    body = {"temperature": 1, "n": 4, "store": False, "user": "ab", "effort": "low", "audio": False}
    assert read(FIELDS, body | {"options": {"kind": "a", "usage": None}, "metadata": {}}) == body | {
        "options": {"kind": "a"},
        "metadata": None,
    }
    assert read(FIELDS, dict.fromkeys(FIELDS)) == {}


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({"temperature": 2.1}, ("temperature", "decimal_above_max_value")),
        ({"temperature": -1}, ("temperature", "decimal_below_min_value")),
        ({"temperature": True}, ("temperature", "invalid_type")),
        ({"n": 5}, ("n", "integer_above_max_value")),
        ({"n": 0}, ("n", "integer_below_min_value")),
        ({"n": 1.0}, ("n", "invalid_type")),
        ({"store": 1}, ("store", "invalid_type")),
        ({"user": "abcdef"}, ("user", "string_above_max_length")),
        ({"user": 1}, ("user", "invalid_type")),
        ({"effort": "middling"}, ("effort", "invalid_value")),
        ({"effort": []}, ("effort", "invalid_type")),
        ({"options": {}}, ("options.kind", "missing_required_parameter")),
        ({"options": {"kind": "a", "x": 1}}, ("options.x", "unknown_parameter")),
        ({"options": []}, ("options", "invalid_type")),
        ({"metadata": {"a": 1}}, ("metadata.a", "invalid_type")),
        ({"metadata": {str(n): "" for n in range(17)}}, ("metadata", "invalid_value")),
        ({"audio": {"voice": "x"}}, ("audio", "unsupported_value")),
        ({"audio": 0}, ("audio", "unsupported_value")),
        ({"sound": 1}, ("sound", "unknown_parameter")),
    ],
)
def test_each_wrong_value_is_named(body: dict[str, Any], refusal: tuple[str, str]) -> None:
    assert _refused(body) == refusal


def test_the_schema_says_the_same() -> None:
    schema = schema_of(FIELDS, ("n",))
    assert schema["required"] == ["n"]
    assert schema["properties"]["n"] == {"type": "integer", "minimum": 1, "maximum": 4}
    assert schema["properties"]["temperature"]["anyOf"][1] == {"type": "null"}
    assert schema["properties"]["audio"] == {"enum": [None, False]}

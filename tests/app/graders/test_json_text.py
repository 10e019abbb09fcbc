"""Strict JSON: what the standard forbids is refused, and depth is bounded."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.graders.json_text import NotJson, compact, depth_of, read_json, strings_in


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expecting value at character 1"),
        ("{'a': 1}", "at character 2"),
        ('{"a": 1} x', "extra data at character 10"),
        ("NaN", "NaN is not"),
        ('{"a": -Infinity}', "-Infinity is not"),
        ("[1e999]", "1e999 is too large"),
        ("9" * 5000, "integer too long"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ("[" * 200_000, "more than 64 levels"),
        ('{"a": "\x00"}', "invalid control character"),
    ],
)
def test_refuses(text: str, told: str) -> None:
    with pytest.raises(NotJson, match=told):
        read_json(text)


def test_depth_is_allowed_up_to_64() -> None:
    assert depth_of(read_json("[" * 64 + "]" * 64)) == 64


@pytest.mark.parametrize(("value", "depth"), [(1, 0), ([], 1), ({}, 1), ([1, [2]], 2), ({"a": {"b": []}}, 3)])
def test_depth_of(value: object, depth: int) -> None:
    assert depth_of(value) == depth


def test_keys_twice_or_too_many_are_refused_on_request() -> None:
    assert read_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(NotJson, match='"a" stands twice'):
        read_json('{"x": {"a": 1, "a": 2}}', unique_keys=True)
    many = compact({str(number): 0 for number in range(1001)})
    with pytest.raises(NotJson, match="1,001 keys"):
        read_json(many, unique_keys=True)


def test_strings_in_finds_keys_and_values() -> None:
    assert sorted(strings_in({"a": ["b", {"c": "d"}], "e": 1})) == ["a", "b", "c", "d", "e"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(_VALUES)
def test_compact_and_back(value: object) -> None:
    assert read_json(compact(value), unique_keys=True) == value
    assert json.loads(compact(value)) == value

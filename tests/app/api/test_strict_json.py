"""The strict loader: what it takes is what JSON says, what it refuses says why."""

from typing import Any

import pytest

from app.api import strict_json
from app.core.errors import InvalidRequest


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b"{}", {}),
        (
            b' {"a": [1, -2.5, 1e3, true, false, null, "\\u00e9\\ud83e\\udd84"]} ',
            {"a": [1, -2.5, 1000.0, True, False, None, "é🦄"]},
        ),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b'{"a": {"x": 1}, "b": {"x": 1}}', {"a": {"x": 1}, "b": {"x": 1}}),
        ("«é»".encode().join([b'"', b'"']), "«é»"),
    ],
)
def test_what_is_json_is_read(body: bytes, document: Any) -> None:
    assert strict_json.loads(body) == document


def test_depth_is_taken_up_to_the_limit_exactly() -> None:
    assert strict_json.loads(_nested(strict_json.MAX_DEPTH))
    for depth in (strict_json.MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidRequest, match="deeper than 64"):
            strict_json.loads(_nested(depth))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "line 1 column 1"),
        (b"{'a': 1}", "line 1 column 2"),
        (b'{"a": 1,}', "line 1"),
        (b"NaN", "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"1e400", "out of range"),
        (b"9223372036854775808", "64 bits"),
        (b"1" * 5000, "64 bits"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        (b'["\\u0000"]', "NUL"),
        (b'{"\\ud83e": 1}', "surrogate"),
        (b'["\\udd84\\ud83e"]', "surrogate"),
        (b'"\xff"', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
    ],
)
def test_what_is_not_is_refused_with_its_reason(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        strict_json.loads(body)
    assert why in caught.value.message
    assert caught.value.code == "invalid_json"
    assert len(caught.value.message) < 300

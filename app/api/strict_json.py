"""Reads a JSON body so strictly that nothing it lets through can make a database refuse it later.

Refused: NaN and infinities, numbers out of range, doubled keys, NUL, lone surrogates, deep nesting.
Called by `deps.json_object` only.

Source: RFC 8259 §4, §8.2, §9 (limits an implementation may set).
"""

import json
import math
from collections import Counter
from typing import Any, NoReturn

from app.core.errors import InvalidRequest

MAX_DEPTH = 64
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**63 - 1


class _Refused(ValueError):
    """Why a document isn't taken."""


def loads(body: bytes) -> Any:
    """Return the document in `body`. Raises: InvalidRequest that says what is wrong with it."""
    try:
        document = json.loads(
            body.decode("utf-8"),
            parse_constant=_constant,
            parse_float=_number,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
        _look_through(document)
    except RecursionError:
        raise _unreadable(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError:
        raise _unreadable("it is not UTF-8") from None
    except json.JSONDecodeError as problem:
        raise _unreadable(f"{problem.msg}, line {problem.lineno} column {problem.colno}") from None
    except _Refused as problem:
        raise _unreadable(str(problem)) from None
    return document


def _unreadable(why: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the JSON body of your request: {why}.", code="invalid_json")


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON number")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"the number {text[:40]} is out of range")
    return value


def _integer(text: str) -> int:
    # The length is looked at first: int() of a million digits is slow, or an error of its own.
    if len(text) > 20 or not _INTEGER_MIN <= int(text) <= _INTEGER_MAX:
        raise _Refused(f"the integer {text[:40]} does not fit in 64 bits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _Refused(f"the key {ascii(twice)[:80]} stands twice in one object")
    return document


def _look_through(document: Any) -> None:
    """Refuse depth and text no database takes. Iterative, so that depth costs no stack."""
    todo: list[tuple[Any, int]] = [(document, 1)]
    while todo:
        value, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise _Refused(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, list):
            todo.extend((item, depth + 1) for item in value)
        elif isinstance(value, dict):
            for key, item in value.items():
                _check_text(key)
                todo.append((item, depth + 1))


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _Refused("a string holds the NUL character")
    # A surrogate that stands alone can't be encoded, so not stored either.
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise _Refused("a string holds a lone surrogate")

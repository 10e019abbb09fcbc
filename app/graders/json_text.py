"""JSON as the standard has it: no NaN, no Infinity, bounded depth; and the one compact way to write it.

Reads what strangers wrote: answers of a model (`grade`) and dataset lines (`services.dataset_rows`).
Request bodies are not read here.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_DEPTH = 64
MAX_KEYS = 1000


class NotJson(ValueError):
    """Text that is not the JSON we accept; the message says what is wrong and where."""


def read_json(text: str, *, unique_keys: bool = False) -> Any:
    """Parse one JSON value; `unique_keys` refuses an object that names a key twice, or over 1,000 keys.

    Raises: NotJson, for anything else than a JSON value of at most 64 levels.
    """
    pairs_hook = _distinct if unique_keys else None
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=pairs_hook
        )
    except NotJson:
        raise
    except RecursionError:
        raise NotJson(f"nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:]
        raise NotJson(f"not valid JSON: {what} at character {error.pos + 1}") from None
    except ValueError:
        # The interpreter's own guard against integers of thousands of digits.
        raise NotJson("it holds an integer too long to read") from None
    if depth_of(value) > MAX_DEPTH:
        raise NotJson(f"nested more than {MAX_DEPTH} levels deep")
    return value


def compact(value: Any) -> str:
    """Write a value as JSON without spaces, letters of every script as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def depth_of(value: Any) -> int:
    """Return how many objects and arrays lie within each other: 0 for a number, 1 for `[]`."""
    depth = 0
    level = [value]
    while containers := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [
            child for node in containers for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string of a value, keys too."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend(node)
            stack.extend(node.values())


def is_storable(value: Any) -> bool:
    """Say whether a database takes every string of a value: no NUL, no half of a surrogate pair."""
    return not any(
        "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text) for text in strings_in(value)
    )


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson(f"the number {text[:40]} is too large")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(f"the key {compact(key[:80])} stands twice in one object")
            seen.add(key)
    if len(found) > MAX_KEYS:
        raise NotJson(f"an object has {len(found):,} keys, more than {MAX_KEYS:,}")
    return found

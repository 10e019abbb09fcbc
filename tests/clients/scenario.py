"""The scenario the official clients run: its steps, the values they keep, and what each must answer.

`scenario.json` is the one list of steps for every client; nothing in it is Python's or Node's own. Here it is
prepared (`prepare`) and judged (`judge`); the clients that carry it out are in `drivers.py`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass
class Outcome:
    """What a client got for one step: a value, or the fields of the exception it raised."""

    value: Any = None
    error: dict[str, Any] | None = None


@dataclass
class Scenario:
    """Steps with everything filled in but what only their answers will tell."""

    steps: list[dict[str, Any]]
    kept: dict[str, Any] = field(default_factory=dict)

    def carry_out(self, outcomes: Iterator[Outcome]) -> list[str]:
        """Judge each outcome as it comes; return what went wrong, in words."""
        wrong = []
        for step, outcome in zip(self.steps, outcomes, strict=True):
            wrong += [f"{step['name']}: {problem}" for problem in self.judge(step, outcome)]
        return wrong

    def judge(self, step: Mapping[str, Any], outcome: Outcome) -> list[str]:
        """Return what differs between a step's outcome and what it should be, keeping what it names."""
        if "error" in step:
            if outcome.error is None:
                return [f"no error, but {shortened(outcome.value)}"]
            return list(differences(self._filled(step["error"]), outcome.error, "error"))
        if outcome.error is not None:
            return [f"raised {outcome.error}"]
        for name, path in step.get("keep", {}).items():
            self.kept[name] = at(outcome.value, path)
        return list(differences(self._filled(step.get("expect", {})), outcome.value, "answer"))

    def _filled(self, value: Any) -> Any:
        return filled(value, self.kept)


def prepare(client: str, given: Mapping[str, Any]) -> Scenario:
    """Return the steps for one client. `given` are the values the service under test decides."""
    document = json.loads((HERE / "scenario.json").read_text(encoding="utf-8"))
    files = {name: "".join(_lines(rows)) for name, rows in document["files"].items()}
    steps = [
        _prepared(step, document["values"], files, given)
        for step in document["steps"]
        if step.get("only", client).startswith(client.partition("-")[0])
    ]
    return Scenario(steps)


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        for number in range(row["times"]):
            yield json.dumps(row["row"]).replace("{n}", str(number)) + "\n"


# Marks filled in before anything runs: what the service under test decides (`$given`), a part that stands
# under `values` (`$value`), an upload (`$file`; `content` and `part` when it is a piece of another file), a
# file's text, size or bytes (`$text`, `$bytes`, `$utf8`). `$kept` waits for the step that keeps the name.
def _prepared(
    value: Any, values: Mapping[str, Any], files: Mapping[str, str], given: Mapping[str, Any]
) -> Any:
    if isinstance(value, list):
        return [_prepared(one, values, files, given) for one in value]
    if not isinstance(value, dict):
        return value
    if "$given" in value:
        return given[value["$given"]]
    if "$value" in value:
        return _prepared(values[value["$value"]], values, files, given)
    if "$file" in value:
        name = value["$file"]
        text = files[value.get("content", name)]
        start, end = value.get("part", (0, len(text)))
        return {**value, "$file": {"name": name, "text": text[start:end]}}
    if "$utf8" in value:
        return files[value["$utf8"]].encode()
    if "$text" in value:
        return files[value["$text"]]
    if "$bytes" in value:
        return len(files[value["$bytes"]])
    return {key: _prepared(one, values, files, given) for key, one in value.items()}


def filled(value: Any, kept: Mapping[str, Any]) -> Any:
    """Return `value` with each `{"$kept": name}` replaced by what an earlier step kept."""
    if isinstance(value, list):
        return [filled(one, kept) for one in value]
    if isinstance(value, dict):
        if "$kept" in value:
            # Not kept because that step failed: what follows fails in its own words.
            return kept.get(value["$kept"], "nothing-kept")
        return {key: filled(one, kept) for key, one in value.items()}
    return value


def at(value: Any, path: str) -> Any:
    """Return what lies at a dotted path; numbers index lists."""
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def differences(expected: Any, actual: Any, where: str) -> Iterator[str]:
    """Yield how `actual` fails `expected`: a dictionary asks only for its own keys, a list for all."""
    if isinstance(expected, dict):
        if any(key.startswith("$") for key in expected):
            yield from _special(expected, actual, where)
        elif not isinstance(actual, dict):
            yield f"{where} is {shortened(actual)}, not an object"
        else:
            for key, value in expected.items():
                if key not in actual:
                    yield f"{where}.{key} is absent"
                else:
                    yield from differences(value, actual[key], f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for number, (wanted, given) in enumerate(zip(expected, actual, strict=True)):
            yield from differences(wanted, given, f"{where}[{number}]")
    elif isinstance(expected, bool) != isinstance(actual, bool) or expected != actual:
        yield f"{where} is {shortened(actual)}, not {shortened(expected)}"


def _special(expected: Mapping[str, Any], actual: Any, where: str) -> Iterator[str]:
    [(kind, wanted)] = expected.items()
    holds = {
        "$like": lambda: isinstance(actual, str) and re.search(wanted, actual) is not None,
        "$integer": lambda: isinstance(actual, int) and not isinstance(actual, bool) and actual >= wanted,
        "$number": lambda: isinstance(actual, int | float) and not isinstance(actual, bool),
        "$one_of": lambda: actual in wanted,
        "$count": lambda: len(actual) == wanted,
        "$at_least": lambda: len(actual) >= wanted,
        "$keys": lambda: set(actual) == set(wanted),
        "$ids": lambda: [one["id"] for one in actual] == wanted,
        "$descending": lambda: all(a[wanted] >= b[wanted] for a, b in pairwise(actual)),
        "$includes": lambda: any(not list(differences(wanted, one, where)) for one in actual),
        "$every": lambda: all(not list(differences(wanted, one, where)) for one in actual),
    }[kind]()
    if not holds:
        yield f"{where} is {shortened(actual)}, which is not {kind[1:]} {shortened(wanted)}"


def shortened(value: Any) -> str:
    """Return a value for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) < 600 else f"{text[:600]}…"

"""An answer's text as it comes, told apart: thought, content, tool calls, and where a stop string ends it.

Text that may be the beginning of a mark is held back until it is clear. No tokens, no model. Called by
`choices.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from worker.serving.template import THOUGHT_ENDS, THOUGHT_OPENS

CALL_OPENS, CALL_ENDS = "<tool_call>", "</tool_call>"

Kind = Literal["content", "reasoning", "call"]
Part = tuple[Kind, str]


class Reader:
    """One answer. `stopped` is true once a stop string was met; `kind` says what is being read."""

    def __init__(self, *, stops: Sequence[str], tools: Sequence[str], thinking: bool) -> None:
        self.stopped = False
        self.kind: Kind = "reasoning" if thinking else "content"
        self._stops = tuple(stops)
        self._tools = frozenset(tools)
        self._held = ""
        self._begun = False  # the content holds more than white space
        # White space is layout when a thought or a call comes after it, so at such places it waits.
        self._waits = True
        self._after_thought = self._called = False

    def feed(self, text: str) -> list[Part]:
        """Return what has become clear with this much more text."""
        self._held += text
        found: list[Part] = []
        while not self.stopped and self._advance(found):
            pass
        return [part for part in found if part[1]]

    def end(self) -> list[Part]:
        """Return what was held back, now that nothing follows."""
        rest, self._held = self._held, ""
        if not rest or self.stopped:
            return []
        if self.kind == "call":
            return list(self._calls(rest, CALL_OPENS + rest))
        if self.kind == "content" and self._is_whole_call(rest):
            return list(self._calls(rest, rest))
        if self._waits and self._called and not rest.strip():
            return []
        return [(self.kind, rest)]

    def _advance(self, found: list[Part]) -> bool:
        """Read up to the next mark; return whether there was one."""
        if self.kind == "content" and self._is_whole_call(self._held):
            return False
        marks = self._marks()
        places = [(place, mark) for mark in marks if (place := self._held.find(mark)) >= 0]
        if not places:
            clear = len(self._held) - _held_back(self._held, marks)
            waits = self.kind == "content" and self._waits and not self._held[:clear].strip()
            if self.kind != "call" and not waits:
                self._say(found, clear)
            return False
        # Of two marks at one place the longer: it is the one that was meant.
        place, mark = min(places, key=lambda one: (one[0], -len(one[1])))
        if self.kind == "call":
            found += self._calls(self._held[:place], CALL_OPENS + self._held[: place + len(mark)])
            self._held, self.kind = self._held[place + len(mark) :], "content"
            self._waits = self._called = True
            return True
        self._say(found, place)
        self._held = self._held[len(mark) :]
        if mark == THOUGHT_OPENS:
            self.kind = "reasoning"
        elif mark == THOUGHT_ENDS:
            self.kind, self._waits, self._after_thought = "content", True, True
        elif mark == CALL_OPENS:
            self.kind = "call"
        else:
            self.stopped = True
        return True

    def _marks(self) -> tuple[str, ...]:
        if self.kind == "reasoning":
            return (THOUGHT_ENDS,)
        if self.kind == "call":
            return (CALL_ENDS,)
        # A thought comes first or not at all: later on, the word is only a word.
        begin = self._held.lstrip()[: len(THOUGHT_OPENS)]
        opens = (THOUGHT_OPENS,) if not self._begun and THOUGHT_OPENS.startswith(begin) else ()
        return (*self._stops, *opens, *((CALL_OPENS,) if self._tools else ()))

    def _say(self, found: list[Part], length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if self.kind == "content" and self._waits:
            if self._after_thought:
                text = text.lstrip("\n")
            if not text.strip() and self._held.startswith((THOUGHT_OPENS, CALL_OPENS)):
                return
            self._waits = not text.strip()
            self._begun = self._begun or not self._waits
        found.append((self.kind, text))

    def _is_whole_call(self, text: str) -> bool:
        """Say whether an answer may be nothing but a call in bare JSON, as Llama's models write it."""
        return bool(self._tools) and not self._begun and text.lstrip()[:1] in ("{", "[")

    def _calls(self, text: str, otherwise: str) -> Iterator[Part]:
        calls = parse_calls(text, self._tools)
        if calls is None:
            yield "content", otherwise
            return
        for call in calls:
            yield "call", json.dumps(call, ensure_ascii=False)


def parse_calls(text: str, tools: frozenset[str]) -> list[dict[str, Any]] | None:
    """Return the calls a text makes, each `{"name", "arguments"}`; None when it is no call of these tools."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    calls = said if isinstance(said, list) else [said]
    found = []
    for call in calls:
        if not isinstance(call, Mapping) or call.get("name") not in tools:
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        found.append({"name": call["name"], "arguments": arguments})
    return found or None


def _held_back(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at a text's end may be the beginning of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0

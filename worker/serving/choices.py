"""One answer on its way to its reader: tokens in, pieces of OpenAI's message out.

A piece is what one chunk of a stream carries; a whole answer is its pieces put together. Called by `batch.py`
after every token, on the thread that computes.

Source: https://platform.openai.com/docs/api-reference/chat-streaming
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.ids import new_id
from worker.engine.decoder import Row
from worker.engine.grammar import Grammar
from worker.serving.reading import Reader
from worker.serving.spelling import Spelling, Spoken

Delta = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """What became known of one choice. `finish_reason` ends it."""

    index: int
    delta: Delta
    logprobs: list[dict[str, Any]] | None = None
    finish_reason: str | None = None


@dataclass(slots=True)
class Choice:
    """One of a request's answers. `tokens` and `reasoning_tokens` are what it took so far."""

    index: int
    row: Row
    reader: Reader
    spelling: Spelling
    # What binds the content once the thought the prompt began has ended.
    after_thought: Grammar | None = None
    tokens: int = 0
    reasoning_tokens: int = 0
    _spoken: Spoken = field(default_factory=Spoken)
    _calls: int = 0
    _content: int = 0  # characters of content the reader has been told
    _said: int = 0  # characters of content that were spelt
    # Log-probs whose text is still held back, with where it begins.
    _waiting: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def advance(self) -> list[Piece]:
        """Return what the row's new tokens make known; the last piece says when it has ended."""
        pieces: list[Piece] = []
        while self.tokens < len(self.row.tokens) and not self.reader.stopped:
            pieces += self._take(self.tokens)
        if self.reader.stopped or self.row.finish is not None:
            pieces += self._end()
        return pieces

    @property
    def ended(self) -> bool:
        """True when nothing more will be said, be it that the row goes on."""
        return self.reader.stopped or self.row.finish is not None

    def _take(self, place: int) -> list[Piece]:
        token = self.row.tokens[place]
        self.tokens += 1
        if token in self.row.stops:
            return []
        before = self.reader.kind
        text = self.spelling.next(self._spoken, token)
        if before == "content" and self.row.alternatives is not None:
            likeliest = self.row.likeliest[place]
            told = self.spelling.logprob(token, self.row.logprobs[place], likeliest)
            self._waiting.append((self._said, told))
        if before == "content":
            self._said += len(text)
        parts = self.reader.feed(text)
        self.reasoning_tokens += "reasoning" in (before, self.reader.kind)
        if self.after_thought is not None and self.reader.kind == "content":
            self.row.cursor, self.after_thought = self.after_thought.cursor(), None
            self.row.take_forced()
        return self._pieces(parts)

    def _end(self) -> list[Piece]:
        # What the reader holds back stands before the text that never became whole characters.
        rest = [] if self.reader.stopped else self.reader.feed(self.spelling.rest(self._spoken))
        pieces = self._pieces([*rest, *self.reader.end()])
        left = [told for start, told in self._waiting if not self.reader.stopped or start < self._content]
        reason: str | None = "stop" if self.reader.stopped else self.row.finish
        if self._calls and reason == "stop":
            reason = "tool_calls"
        told = left if self.row.alternatives is not None else None
        return [*pieces, Piece(self.index, {}, told, reason)]

    def _pieces(self, parts: Sequence[tuple[str, str]]) -> list[Piece]:
        pieces = []
        for kind, text in parts:
            if kind == "reasoning":
                pieces.append(Piece(self.index, {"reasoning_content": text}))
            elif kind == "call":
                pieces.append(Piece(self.index, {"tool_calls": [self._call(json.loads(text))]}))
            else:
                self._content += len(text)
                pieces.append(Piece(self.index, {"content": text}, self._told()))
        return pieces

    def _told(self) -> list[dict[str, Any]] | None:
        ready = [told for start, told in self._waiting if start < self._content]
        self._waiting = [one for one in self._waiting if one[0] >= self._content]
        return ready or None

    def _call(self, call: Mapping[str, Any]) -> Delta:
        self._calls += 1
        return {"index": self._calls - 1, "id": new_id("call"), "type": "function", "function": dict(call)}


def whole(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return the choice that all its pieces make."""
    content = [piece.delta["content"] for piece in pieces if "content" in piece.delta]
    thought = "".join(piece.delta.get("reasoning_content", "") for piece in pieces)
    calls = [call for piece in pieces for call in piece.delta.get("tool_calls", ())]
    told = [one for piece in pieces for one in piece.logprobs or ()]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(content) if content or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [{key: call[key] for key in call if key != "index"} for call in calls]
    return {
        "index": pieces[-1].index,
        "message": message,
        "logprobs": {"content": told, "refusal": None} if pieces[-1].logprobs is not None else None,
        "finish_reason": pieces[-1].finish_reason,
    }

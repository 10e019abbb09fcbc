"""A chat completion as OpenAI has it, whole or in pieces, made from what an engine said.

Engines differ in what they leave out and add; here every key stands, under our id and the model's name. Text
that no database could store is mended on the way. Called by `completions`; `responses` are made of its
pieces.

Source: https://platform.openai.com/docs/api-reference/chat/object and /chat-streaming
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from app.core import clock, ids
from app.core.engines import Served

ENDINGS = ("stop", "length", "tool_calls", "content_filter", "function_call")

Piece = dict[str, Any]


class Garbled(Exception):
    """What the engine said is no chat completion."""


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come."""

    content: str | None = None
    reasoning: str = ""
    calls: dict[int, Piece] = field(default_factory=dict)
    logprobs: list[Piece] | None = None
    ending: str | None = None

    def message(self) -> Piece:
        """Return the assistant's message."""
        message: Piece = {"role": "assistant", "content": self.content, "refusal": None, "annotations": []}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call for _, call in sorted(self.calls.items())]
        return message


@dataclass(slots=True)
class Answer:
    """A completion under way: pieces go in as the engine sends them and come out as OpenAI would."""

    served: Served
    id: str = field(default_factory=lambda: ids.new_id("completion"))
    created: int = field(default_factory=lambda: clock.seconds(clock.now()))
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Piece | None = None
    fingerprint: str = ""

    def whole(self, said: Mapping[str, Any]) -> Piece:
        """Return the completion that an engine sent in one. Raises: Garbled."""
        try:
            self._note(said)
            for place, one in enumerate(said["choices"]):
                # Read as one long piece, so that both ways of answering are one.
                delta = {key: value for key, value in one["message"].items() if key != "tool_calls"}
                delta["tool_calls"] = [
                    {"index": index, **call}
                    for index, call in enumerate(one["message"].get("tool_calls") or ())
                ]
                for _ in self._pieces({**one, "index": one.get("index", place), "delta": delta}):
                    pass
        except (LookupError, TypeError, AttributeError, ValueError) as problem:
            raise Garbled(f"{type(problem).__name__}: {problem}") from problem
        if not self.choices:
            raise Garbled("it has no choices")
        return self.completion()

    def pieces(self, said: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield the chunks that one chunk of an engine becomes. Raises: Garbled."""
        try:
            self._note(said)
            for one in said.get("choices") or ():
                for piece in self._pieces(one):
                    yield self._chunk([piece])
        except (LookupError, TypeError, AttributeError, ValueError) as problem:
            raise Garbled(f"{type(problem).__name__}: {problem}") from problem

    def usage_chunk(self) -> Piece:
        """Return the last chunk of a stream whose reader wants to know what it took."""
        return {**self._chunk([]), "usage": self.usage or usage_of({})}

    def completion(self) -> Piece:
        """Return the completion as far as it has come."""
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": None
                if choice.logprobs is None
                else {"content": choice.logprobs, "refusal": None},
                "finish_reason": choice.ending or "stop",
            }
            for index, choice in sorted(self.choices.items())
        ]
        head = {"id": self.id, "object": "chat.completion", "created": self.created}
        return {**head, **self._foot(), "choices": choices, "usage": self.usage or usage_of({})}

    def _note(self, said: Mapping[str, Any]) -> None:
        if isinstance(said.get("usage"), Mapping):
            self.usage = usage_of(said["usage"])
        told = said.get("system_fingerprint") or self.served.model
        self.fingerprint = self.fingerprint or f"fp_{sha256(str(told).encode()).hexdigest()[:10]}"

    def _foot(self) -> Piece:
        fingerprint = self.fingerprint
        return {"model": self.served.model, "service_tier": "default", "system_fingerprint": fingerprint}

    def _chunk(self, choices: list[Piece]) -> Piece:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created}
        return {**head, **self._foot(), "choices": choices}

    def _pieces(self, one: Mapping[str, Any]) -> Iterator[Piece]:
        index, delta = int(one.get("index", 0)), one["delta"]
        if index not in self.choices:
            self.choices[index] = Choice()
            yield _piece(index, {"role": "assistant", "content": "", "refusal": None})
        choice = self.choices[index]
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str):
            choice.reasoning += (thought := stored_text(thought))
            yield _piece(index, {"reasoning_content": thought})
        logprobs = _logprobs(one.get("logprobs"))
        if logprobs is not None:
            choice.logprobs = [*(choice.logprobs or []), *logprobs]
        content = delta.get("content")
        if isinstance(content, str):
            content = stored_text(content)
            choice.content = (choice.content or "") + content
        if content or logprobs:
            yield _piece(index, {"content": content} if content else {}, logprobs)
        for call in delta.get("tool_calls") or ():
            yield from (_piece(index, {"tool_calls": [part]}) for part in _call_parts(choice.calls, call))
        ending = one.get("finish_reason")
        if ending is not None and choice.ending is None:
            choice.ending = ending if ending in ENDINGS else "stop"
            if choice.content is None and not choice.calls:
                choice.content = ""
            yield _piece(index, {}, ending=choice.ending)


def usage_of(given: Mapping[str, Any]) -> Piece:
    """Return what an answer took, every key of it."""
    prompt, completion = _count(given.get("prompt_tokens")), _count(given.get("completion_tokens"))
    read, wrote = given.get("prompt_tokens_details") or {}, given.get("completion_tokens_details") or {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": _count(read.get("cached_tokens")), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": _count(wrote.get("reasoning_tokens")),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def stored_text(text: str) -> str:
    """Return a text that every database takes: no NUL, no lone surrogate."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def _call_parts(calls: dict[int, Piece], said: Mapping[str, Any]) -> Iterator[Piece]:
    """Yield a call's head when it is new, then the next piece of its arguments."""
    place, function = int(said.get("index", 0)), said.get("function") or {}
    if place not in calls:
        head: Piece = {"id": said.get("id") or ids.new_id("call"), "type": "function"}
        name = stored_text(str(function.get("name") or ""))
        calls[place] = {**head, "function": {"name": name, "arguments": ""}}
        yield {"index": place, **head, "function": {"name": name, "arguments": ""}}
    arguments = stored_text(function.get("arguments") or "")
    if arguments:
        calls[place]["function"]["arguments"] += arguments
        yield {"index": place, "function": {"arguments": arguments}}


def _piece(
    index: int, delta: Piece, logprobs: list[Piece] | None = None, *, ending: str | None = None
) -> Piece:
    told = None if logprobs is None else {"content": logprobs, "refusal": None}
    return {"index": index, "delta": delta, "logprobs": told, "finish_reason": ending}


def _logprobs(given: Any) -> list[Piece] | None:
    if not isinstance(given, Mapping) or given.get("content") is None:
        return None
    return [
        {**_logprob(one), "top_logprobs": [_logprob(other) for other in one.get("top_logprobs") or ()]}
        for one in given["content"]
    ]


def _logprob(one: Mapping[str, Any]) -> Piece:
    token = stored_text(one["token"])
    # JSON knows no infinity.
    logprob = max(-9999.0, float(one["logprob"]))
    return {"token": token, "logprob": logprob, "bytes": one.get("bytes") or list(token.encode())}


def _count(given: Any) -> int:
    return given if isinstance(given, int) and not isinstance(given, bool) and given > 0 else 0

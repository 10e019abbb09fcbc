"""A response as it grows: the pieces of a chat completion go in, the events of the Responses API come out.

Items open and close one after the other: thoughts, the message, calls. What is left at the end is the
response. Called by `responses`.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.core import clock, ids
from app.core.errors import AppError, InvalidRequest, RateLimited
from app.services.response_request import ResponseRequest

# What a response that failed may name as its reason.
_CODES = ((RateLimited, "rate_limit_exceeded"), (InvalidRequest, "invalid_prompt"))

Event = dict[str, Any]
Item = dict[str, Any]


@dataclass(slots=True)
class Growth:
    """One response under way."""

    request: ResponseRequest
    model: str
    id: str = field(default_factory=lambda: ids.new_id("response"))
    created: float = field(default_factory=clock.now)
    output: list[Item] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    status: str = "queued"
    error: dict[str, Any] | None = None
    ending: str | None = None
    completed: float | None = None
    _events: int = 0
    # The call that is being read, by the engine's number for it; None while no call is.
    _call: int | None = None
    _open: bool = False

    def opening(self) -> Iterator[Event]:
        """Yield what comes before anything is said."""
        self.status = "in_progress"
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())

    def pieces(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the events of one chunk of a chat completion."""
        for choice in chunk["choices"]:
            delta, logprobs = choice["delta"], (choice["logprobs"] or {}).get("content") or []
            if delta.get("reasoning_content"):
                yield from self._think(delta["reasoning_content"])
            if delta.get("content") or logprobs:
                yield from self._say(delta.get("content", ""), logprobs)
            for call in delta.get("tool_calls", ()):
                yield from self._read_call(call)
            self.ending = choice["finish_reason"] or self.ending

    def closing(self, usage: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the end: what is still open is closed, and the response stands whole."""
        if not self.output:
            yield from self._say("", [])
        cut = self.ending in ("length", "content_filter")
        yield from self._close("incomplete" if cut else "completed")
        self.usage = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {
                "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]
            },
            "total_tokens": usage["total_tokens"],
        }
        self.status = "incomplete" if cut else "completed"
        self.completed = None if cut else clock.now()
        yield self._event(f"response.{self.status}", response=self.response())

    def failing(self, problem: AppError) -> Event:
        """Return the end of a response whose engine failed under way."""
        code = next((code for kind, code in _CODES if isinstance(problem, kind)), "server_error")
        self.status, self.error = "failed", {"code": code, "message": problem.message}
        if self._open:
            self.output[-1]["status"] = "incomplete"
        return self._event("response.failed", response=self.response())

    def response(self) -> dict[str, Any]:
        """Return the response as far as it has come."""
        cut = {"length": "max_output_tokens"}.get(self.ending or "", "content_filter")
        return {
            "id": self.id,
            "object": "response",
            "created_at": clock.seconds(self.created),
            "completed_at": None if self.completed is None else clock.seconds(self.completed),
            "status": self.status,
            "error": self.error,
            "incomplete_details": {"reason": cut} if self.status == "incomplete" else None,
            "model": self.model,
            "output": [_copied(item) for item in self.output],
            "usage": self.usage,
            **self.request.echo(),
        }

    def _think(self, text: str) -> Iterator[Event]:
        part = {"type": "reasoning_text", "text": ""}
        if not self._is_open("reasoning"):
            item = {"id": ids.new_id("reasoning"), "type": "reasoning", "summary": [], "content": []}
            yield from self._begin(item, part)
        self.output[-1]["content"][0]["text"] += text
        yield self._event("response.reasoning_text.delta", **self._part_place(), delta=text)

    def _say(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        if not self._is_open("message"):
            head = {"id": ids.new_id("message"), "type": "message", "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield from self._begin(head, part)
        part = self.output[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            yield self._event(
                "response.output_text.delta", **self._part_place(), delta=text, logprobs=logprobs
            )

    def _read_call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        function = call["function"]
        if "id" in call:
            told = {"call_id": call["id"], "name": function["name"], "arguments": ""}
            item = {"id": ids.new_id("function_call"), "type": "function_call", **told}
            yield from self._begin(item, None)
            self._call = call["index"]
        arguments = function.get("arguments", "")
        if arguments and self._call == call["index"]:
            self.output[-1]["arguments"] += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)

    def _begin(self, item: Item, part: dict[str, Any] | None) -> Iterator[Event]:
        yield from self._close("completed")
        self.output.append(item | {"status": "in_progress"})
        self._open = True
        index = len(self.output) - 1
        yield self._event("response.output_item.added", output_index=index, item=_copied(self.output[-1]))
        if part is not None:
            self.output[-1]["content"].append(part)
            yield self._event("response.content_part.added", **self._part_place(), part=dict(part))

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        item = self.output[-1]
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **self._place(), **told)
        else:
            part = item["content"][0]
            if item["type"] == "message":
                told = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._event("response.output_text.done", **self._part_place(), **told)
            else:
                yield self._event("response.reasoning_text.done", **self._part_place(), text=part["text"])
            yield self._event("response.content_part.done", **self._part_place(), part=dict(part))
        item["status"] = status
        self._open, self._call = False, None
        index = len(self.output) - 1
        yield self._event("response.output_item.done", output_index=index, item=_copied(item))

    def _is_open(self, kind: str) -> bool:
        return self._open and self.output[-1]["type"] == kind

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _part_place(self) -> dict[str, Any]:
        return {**self._place(), "content_index": 0}

    def _event(self, kind: str, **told: Any) -> Event:
        event = {"type": kind, "sequence_number": self._events, **told}
        self._events += 1
        return event


def _copied(item: Item) -> Item:
    """Return an item that later pieces don't change."""
    if "content" not in item:
        return dict(item)
    return {**item, "content": [{**part} for part in item["content"]]}

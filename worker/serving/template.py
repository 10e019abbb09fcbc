"""A model's chat template: what it knows, and a conversation as the tokens the model is asked to continue.

Called by `api.py` for each request. The template itself comes with the model and runs in transformers'
sandboxed Jinja.

Source: the arguments `tools`, `reasoning_effort` and `enable_thinking` as the templates of Llama, Mistral,
Qwen, SmolLM3, DeepSeek and gpt-oss read them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from app.core.errors import InvalidRequest
from worker.engine.policy import Policy
from worker.serving.request import ChatRequest

THOUGHT_OPENS, THOUGHT_ENDS = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation in tokens; `thinking` says that it ends inside a thought the model is to go on with."""

    token_ids: tuple[int, ...]
    thinking: bool


class Template:
    """The chat template of one base model."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._tokenizer = policy.tokenizer

    @cached_property
    def _words(self) -> frozenset[str]:
        template = self._tokenizer.chat_template or ""
        # Several templates under names: the one for tools is among them.
        text = template if isinstance(template, str) else " ".join(map(str, dict(template).values()))
        return frozenset(re.findall(r"\w+", text))

    def encode(self, request: ChatRequest) -> Asked:
        """Return a request's conversation in tokens.

        Raises: InvalidRequest when the template refuses it, knows no tools, or the text is too long.
        """
        tools = request.tools if request.tool_choice != "none" else ()
        if tools and "tools" not in self._words:
            raise InvalidRequest(
                f"The chat template of '{request.model}' knows no tools: leave 'tools' out, or ask another "
                "model.",
                param="tools",
                code="unsupported_value",
            )
        options = self._effort(request.effort)
        if tools:
            options["tools"] = [dict(tool) for tool in tools]
        try:
            text = self._tokenizer.apply_chat_template(
                [_message(message) for message in request.messages],
                add_generation_prompt=True,
                tokenize=False,
                **options,
            )
        except (TemplateError, TypeError, ValueError) as problem:
            raise InvalidRequest(
                f"The chat template of '{request.model}' refuses these messages: {problem}",
                param="messages",
                code="invalid_value",
            ) from problem
        # As apply_chat_template itself goes on: the template writes every special token there is to be.
        token_ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        self._check_length(token_ids)
        return Asked(token_ids, text.rstrip().endswith(THOUGHT_OPENS))

    def _effort(self, effort: str | None) -> dict[str, Any]:
        if effort is None:
            return {}
        options: dict[str, Any] = {}
        if "reasoning_effort" in self._words:
            options["reasoning_effort"] = effort
        if "enable_thinking" in self._words:
            options["enable_thinking"] = effort not in ("none", "minimal")
        return options

    def _check_length(self, token_ids: Sequence[int]) -> None:
        most = self._policy.context_length
        if not token_ids:
            raise InvalidRequest("The messages come to no text at all.", param="messages")
        if most is not None and len(token_ids) >= most:
            raise InvalidRequest(
                f"This model's maximum context length is {most} tokens. However, your messages resulted in "
                f"{len(token_ids)} tokens. Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as open models' templates know it: `system`, plain text, arguments as objects."""
    found = {key: value for key, value in message.items() if value is not None}
    if found["role"] == "developer":
        found["role"] = "system"
    if isinstance(content := found.get("content"), list):
        found["content"] = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    found.setdefault("content", "")
    if isinstance(calls := found.get("tool_calls"), list):
        found["tool_calls"] = [_call(call) for call in calls if isinstance(call, Mapping)]
    return found


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    # A model wrote them: what is no JSON goes to its template as it stands.
    with suppress(TypeError, ValueError):
        function["arguments"] = json.loads(function.get("arguments") or "{}")
    return {**call, "function": function}

"""The body of a response: which keys there are, what each may hold, and the chat it becomes.

Reads the wire's JSON and no database. Its input stands in `response_input`.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.core import fields, refusals
from app.core.fields import METADATA, Absent, Array, Field, Flag, Inner, Integer, Made, Number, Text, Word
from app.core.response_format import parse_response_format
from app.services import chat_messages, response_input
from app.services.chat_messages import FUNCTION, MOST_TOOLS, NAME, plain_object
from app.services.chat_request import (
    EFFORTS,
    FORMAT_SCHEMA,
    MOST_TOKENS,
    TIERS,
    TOOL_CHOICE_SCHEMA,
    ChatRequest,
)

LOGPROBS = "message.output_text.logprobs"
# Asked for what no model here makes: there is nothing to include.
_INCLUDED = (
    LOGPROBS,
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url"),
    *("code_interpreter_call.outputs", "reasoning.encrypted_content"),
)
_REFERENCE = Inner({"type": Word(("function",)), "name": NAME}, required=("type", "name"))


def _format(value: Any, param: str) -> dict[str, Any]:
    return parse_response_format(value, param=param) or {"type": "text"}


def _tool(value: Any, param: str) -> dict[str, Any]:
    kind = plain_object(value, param).get("type")
    if kind != "function":
        raise refusals.unsupported(
            f"tools of type '{str(kind)[:80]}' are not offered here; 'function' is.", f"{param}.type"
        )
    return Inner({"type": Text(), **FUNCTION}, required=("name",)).check(value, param)


def _tool_choice(value: Any, param: str) -> Any:
    if isinstance(value, str):
        return Word(("none", "auto", "required")).check(value, param)
    kind = plain_object(value, param).get("type")
    if kind == "allowed_tools":
        allowed: dict[str, Field] = {
            "type": Text(),
            "mode": Word(("auto", "required")),
            "tools": Array(_REFERENCE, MOST_TOOLS),
        }
        return Inner(allowed, required=("mode", "tools")).check(value, param)
    if kind != "function":
        raise refusals.unsupported(
            f"a choice of type '{str(kind)[:80]}' is not offered here; 'function' and 'allowed_tools' are.",
            f"{param}.type",
        )
    return _REFERENCE.check(value, param)


_SUMMARY: Field = Word(("auto", "concise", "detailed"))
FIELDS: dict[str, Field] = {
    "model": Text(512),
    "input": response_input.INPUT,
    "instructions": Text(),
    "previous_response_id": Text(64),
    "max_output_tokens": Integer(16, MOST_TOKENS),
    "temperature": Number(0, 2),
    "top_p": Number(0, 1),
    "top_logprobs": Integer(0, 20),
    "include": Array(Word(_INCLUDED), 16, least=0),
    "text": Inner({"format": Made(_format, FORMAT_SCHEMA), "verbosity": Word(("low", "medium", "high"))}),
    "tools": Array(Made(_tool, {"type": "object"}), MOST_TOOLS, least=0),
    "tool_choice": Made(_tool_choice, TOOL_CHOICE_SCHEMA),
    "parallel_tool_calls": Flag(),
    "max_tool_calls": Integer(1, MOST_TOOLS),
    "reasoning": Inner({"effort": Word(EFFORTS), "summary": _SUMMARY, "generate_summary": _SUMMARY}),
    "store": Flag(),
    "metadata": METADATA,
    "stream": Flag(),
    "stream_options": Inner({"include_obfuscation": Flag()}),
    "background": Flag(),
    "truncation": Absent("a conversation is never shortened on its own.", harmless=("disabled",)),
    "conversation": Absent(
        "conversations are not kept here; 'previous_response_id' goes on from a response."
    ),
    "prompt": Absent("prompts are not kept here."),
    "context_management": Absent("a conversation is never shortened on its own."),
    "moderation": Absent("no moderation is offered here."),
    # Taken and without effect: they steer what only the hosted service has.
    "user": Text(),
    "safety_identifier": Text(),
    "prompt_cache_key": Text(),
    "prompt_cache_retention": Text(),
    "prompt_cache_options": Made(plain_object, {"type": "object"}),
    "service_tier": Word(TIERS),
}
REQUIRED = ("model", "input")
# What counting tokens looks at.
COUNTED: dict[str, Field] = {
    name: FIELDS[name]
    for name in (
        *("model", "input", "instructions", "previous_response_id", "tools", "tool_choice", "text"),
        *("reasoning", "parallel_tool_calls", "truncation", "conversation"),
    )
}


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A well-formed request. `asked` holds what it set, in its normal form; its input has become items."""

    model: str
    asked: dict[str, Any]

    @property
    def input(self) -> list[dict[str, Any]]:
        """The new items of the conversation."""
        found: list[dict[str, Any]] = self.asked["input"]
        return found

    @property
    def stream(self) -> bool:
        """True when the answer is to come in events."""
        return bool(self.asked.get("stream"))

    @property
    def in_background(self) -> bool:
        """True when the client will come back for the answer."""
        return bool(self.asked.get("background"))

    @property
    def is_stored(self) -> bool:
        """True unless the response is to be forgotten."""
        return bool(self.asked.get("store", True))

    @property
    def previous_id(self) -> str | None:
        """The response this one goes on from."""
        found: str | None = self.asked.get("previous_response_id")
        return found

    def chat(self, before: Iterable[dict[str, Any]]) -> ChatRequest:
        """Return the chat completion this response is made of, after the items that came `before`."""
        asked = self.asked
        conversation = response_input.messages([*before, *self.input], instructions=asked.get("instructions"))
        chat: dict[str, Any] = {"messages": conversation}
        chat |= {key: asked[key] for key in ("temperature", "top_p", "parallel_tool_calls") if key in asked}
        if "max_output_tokens" in asked:
            chat["max_completion_tokens"] = asked["max_output_tokens"]
        if "top_logprobs" in asked or LOGPROBS in asked.get("include", ()):
            chat |= {"logprobs": True, "top_logprobs": asked.get("top_logprobs", 0)}
        answer_format = asked.get("text", {}).get("format", {"type": "text"})
        if answer_format["type"] != "text":
            chat["response_format"] = answer_format
        if asked.get("reasoning", {}).get("effort") is not None:
            chat["reasoning_effort"] = asked["reasoning"]["effort"]
        if asked.get("tools"):
            chat["tools"] = [_chat_tool(tool) for tool in asked["tools"]]
            if "tool_choice" in asked:
                chat["tool_choice"] = _chat_choice(asked["tool_choice"])
        return ChatRequest(self.model, chat)

    def echo(self) -> dict[str, Any]:
        """Return the keys of the response that repeat the request."""
        asked = self.asked
        text = asked.get("text", {})
        effort = asked.get("reasoning", {})
        return {
            "background": self.in_background,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "max_tool_calls": asked.get("max_tool_calls"),
            "metadata": asked.get("metadata") or {},
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": self.previous_id,
            "prompt_cache_key": asked.get("prompt_cache_key"),
            "reasoning": {"effort": effort.get("effort"), "summary": effort.get("summary")},
            "safety_identifier": asked.get("safety_identifier"),
            "service_tier": "default",
            "store": self.is_stored,
            "temperature": asked.get("temperature", 1.0),
            "text": {
                "format": _flat(text.get("format", {"type": "text"})),
                "verbosity": text.get("verbosity", "medium"),
            },
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": [_full(tool) for tool in asked.get("tools", ())],
            "top_logprobs": asked.get("top_logprobs", 0),
            "top_p": asked.get("top_p", 1.0),
            "truncation": "disabled",
            "user": asked.get("user"),
        }


def parse_response_request(body: Mapping[str, Any]) -> ResponseRequest:
    """Return the request in `body`. Raises: InvalidRequest naming the parameter and the cure."""
    return _checked(fields.read(FIELDS, body, required=REQUIRED))


def parse_count_request(body: Mapping[str, Any]) -> ResponseRequest:
    """Return the request whose input is to be counted. Raises: InvalidRequest."""
    return _checked(fields.read(COUNTED, body, required=REQUIRED))


def _checked(asked: dict[str, Any]) -> ResponseRequest:
    if "stream_options" in asked and not asked.get("stream"):
        raise refusals.invalid("it is only allowed when 'stream' is true", "stream_options")
    if asked.get("background") and asked.get("stream"):
        raise refusals.unsupported(
            "a response in the background is retrieved, not streamed. Leave 'stream' out.", "stream"
        )
    if asked.get("background") and not asked.get("store", True):
        raise refusals.invalid("a response in the background is retrieved, so it must be kept", "store")
    choice = asked.get("tool_choice")
    if choice not in (None, "none", "auto"):
        tools = [_chat_tool(tool) for tool in asked.get("tools", ())]
        chat_messages.check_tool_choice({"tools": tools, "tool_choice": _chat_choice(choice)})
    return ResponseRequest(asked["model"], asked)


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _chat_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    tools = [{"type": "function", "function": {"name": tool["name"]}} for tool in choice["tools"]]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}


def _full(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": True, **tool}


def _flat(answer_format: Mapping[str, Any]) -> dict[str, Any]:
    """Return a format as the Responses API has it: the schema's own keys beside the type."""
    inner = answer_format.get("json_schema", {})
    return {"type": answer_format["type"], **inner}

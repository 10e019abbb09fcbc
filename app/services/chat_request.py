"""The body of a chat completion: which keys there are, what each may hold, and what the engine is asked.

Reads the wire's JSON and no database. What a message may hold stands in `chat_messages`.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core import fields, refusals
from app.core.errors import InvalidRequest
from app.core.fields import METADATA, Absent, Array, Field, Flag, Inner, Integer, Made, Number, Text, Word
from app.core.response_format import parse_response_format
from app.services import chat_messages

MOST_TOKENS = 1_000_000
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
# What the engine gets as the request has it; the rest is this service's own business.
FORWARDED = frozenset(
    {
        *("messages", "temperature", "top_p", "n", "stop", "max_completion_tokens", "seed", "logprobs"),
        *("top_logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "response_format", "tools"),
        *("tool_choice", "parallel_tool_calls", "reasoning_effort"),
    }
)
REQUIRED = ("messages", "model")


def _stop(value: Any, param: str) -> Any:
    return Text().check(value, param) if isinstance(value, str) else _STOPS.check(value, param)


def _bias(value: Any, param: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise refusals.wrong_type("an object", value, param)
    if len(value) > 1_024:
        raise refusals.invalid("at most 1024 tokens can be biased", param)
    for token in value:
        if not (token.isascii() and token.isdecimal() and len(token) <= 9):
            raise refusals.invalid(f"'{token[:40]}' is no token id", param)
    return {token: Number(-100, 100).check(bias, f"{param}.{token}") for token, bias in value.items()}


def _format(value: Any, param: str) -> Any:
    return parse_response_format(value, param=param)


def _modalities(value: Any, param: str) -> Any:
    if value != ["text"]:
        raise refusals.unsupported("the models here answer in text only; the value is ['text'].", param)
    return value


_STOPS = Array(Text(), 4)
FORMAT_SCHEMA = {
    "type": "object",
    "properties": {"type": Word(("text", "json_object", "json_schema")).schema()},
    "required": ["type"],
}
TOOL_CHOICE_SCHEMA = {"anyOf": [Word(("none", "auto", "required")).schema(), {"type": "object"}]}
FIELDS: dict[str, Field] = {
    "messages": chat_messages.MESSAGES,
    "model": Text(512),
    "temperature": Number(0, 2),
    "top_p": Number(0, 1),
    "n": Integer(1, 128),
    "stop": Made(_stop, {"anyOf": [Text().schema(), _STOPS.schema()]}),
    "max_completion_tokens": Integer(1, MOST_TOKENS),
    "max_tokens": Integer(1, MOST_TOKENS),
    "seed": Integer(-(2**63), 2**63 - 1),
    "logprobs": Flag(),
    "top_logprobs": Integer(0, 20),
    "logit_bias": Made(_bias, {"type": "object", "additionalProperties": Number(-100, 100).schema()}),
    "frequency_penalty": Number(-2, 2),
    "presence_penalty": Number(-2, 2),
    "response_format": Made(_format, FORMAT_SCHEMA),
    "tools": chat_messages.TOOLS,
    "tool_choice": Made(chat_messages.tool_choice, TOOL_CHOICE_SCHEMA),
    "parallel_tool_calls": Flag(),
    "functions": Absent("'tools' has taken the place of 'functions'."),
    "function_call": Absent("'tool_choice' has taken the place of 'function_call'."),
    "reasoning_effort": Word(EFFORTS),
    "stream": Flag(),
    "stream_options": Inner({"include_usage": Flag(), "include_obfuscation": Flag()}),
    "store": Flag(),
    "metadata": METADATA,
    # Taken and without effect: they steer what only the hosted service has.
    "verbosity": Word(("low", "medium", "high")),
    "user": Text(),
    "safety_identifier": Text(),
    "prompt_cache_key": Text(),
    "prompt_cache_retention": Text(),
    "prompt_cache_options": Made(chat_messages.plain_object, {"type": "object"}),
    "prediction": Made(chat_messages.plain_object, {"type": "object"}),
    "service_tier": Word(TIERS),
    "modalities": Made(_modalities, {"type": "array", "items": Word(("text",)).schema(), "maxItems": 1}),
    "audio": Absent("no audio is offered here."),
    "web_search_options": Absent("no web search is offered here."),
    "moderation": Absent("no moderation is offered here."),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A well-formed request. `asked` holds what it set, in its normal form."""

    model: str
    asked: dict[str, Any]

    @property
    def stream(self) -> bool:
        """True when the answer is to come in pieces."""
        return bool(self.asked.get("stream"))

    @property
    def includes_usage(self) -> bool:
        """True when a stream is to end with its usage."""
        return bool(self.asked.get("stream_options", {}).get("include_usage"))

    @property
    def is_stored(self) -> bool:
        """True when the completion is to be kept."""
        return bool(self.asked.get("store"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation."""
        found: list[dict[str, Any]] = self.asked["messages"]
        return found

    def for_engine(self, name: str) -> dict[str, Any]:
        """Return what the engine is asked, which knows the model as `name`."""
        told = {key: value for key, value in self.asked.items() if key in FORWARDED and value is not None}
        choice = told.get("tool_choice")
        if isinstance(choice, Mapping) and choice["type"] == "allowed_tools":
            # Engines know no such choice: it is the others' absence.
            allowed = chat_messages.allowed_names(choice)
            told["tools"] = [tool for tool in told["tools"] if tool["function"]["name"] in allowed]
            told["tool_choice"] = choice["allowed_tools"]["mode"]
        told["messages"] = [_told(message) for message in self.messages]
        # Said aloud, because an engine may have defaults of its own.
        return {"model": name, "temperature": 1.0, "top_p": 1.0} | told

    def echo(self) -> dict[str, Any]:
        """Return what a stored completion shows of its request."""
        asked = self.asked
        return {
            "tool_choice": asked.get("tool_choice", "auto" if "tools" in asked else None),
            "seed": asked.get("seed"),
            "top_p": asked.get("top_p", 1.0),
            "temperature": asked.get("temperature", 1.0),
            "presence_penalty": asked.get("presence_penalty", 0.0),
            "frequency_penalty": asked.get("frequency_penalty", 0.0),
            "input_user": asked.get("user"),
            "tools": asked.get("tools"),
            "response_format": asked.get("response_format"),
        }


def _told(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as every chat template knows it: as training has it, one text and no developer."""
    role = "system" if message["role"] == "developer" else message["role"]
    content = message["content"]
    text = content if content is None else chat_messages.text_of(content)
    return {**message, "role": role, "content": text}


def parse_chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Return the request in `body`. Raises: InvalidRequest naming the parameter and the cure."""
    asked = fields.read(FIELDS, body, required=REQUIRED)
    if "max_tokens" in asked:
        if "max_completion_tokens" in asked:
            raise InvalidRequest(
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
                param="max_tokens",
                code="invalid_parameter_combination",
            )
        asked["max_completion_tokens"] = asked.pop("max_tokens")
    if "top_logprobs" in asked and not asked.get("logprobs"):
        raise refusals.invalid("it is only allowed when 'logprobs' is true", "top_logprobs")
    if "stream_options" in asked and not asked.get("stream"):
        raise refusals.invalid("it is only allowed when 'stream' is true", "stream_options")
    chat_messages.check_tool_choice(asked)
    return ChatRequest(asked["model"], asked)

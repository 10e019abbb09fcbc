"""The body of a chat completion as the inference process needs it: read, checked, defaults filled in.

The web checks more, and first; here every number that would reach the engine is looked at once more, since an
operator may let others ask. Called by `api.py`.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.core import refusals
from app.core.errors import InvalidRequest
from app.core.response_format import parse_response_format, schema_of
from worker.engine.decoder import Shaping

_MOST_CHOICES = 128
_MOST_STOPS = 4
_MOST_ALTERNATIVES = 20

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is wanted. `most` None is as much as fits; `alternatives` None is no log-probs."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    n: int
    temperature: float
    shaping: Shaping | None
    most: int | None
    stops: tuple[str, ...]
    seed: int
    alternatives: int | None
    schema: dict[str, Any] | None
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    effort: str | None
    stream: bool
    includes_usage: bool

    @classmethod
    def read(cls, body: Body) -> "ChatRequest":
        """Return the request a body makes. Raises: InvalidRequest that names the field."""
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str):
            raise (
                refusals.missing("model")
                if model is None
                else refusals.wrong_type("a string", model, "model")
            )
        if not isinstance(messages, list) or not messages:
            raise refusals.invalid("expected a list of at least one message", "messages")
        for place, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise refusals.invalid("expected an object with a role", f"messages[{place}]")
        seed = _whole(body, "seed", -(1 << 63), (1 << 63) - 1)
        most = _whole(body, "max_completion_tokens", 1, None) or _whole(body, "max_tokens", 1, None)
        told = _flag(body, "logprobs")
        response_format = parse_response_format(body.get("response_format"), param="response_format")
        tools, choice = _tools(body)
        return cls(
            model=model,
            messages=messages,
            n=_whole(body, "n", 1, _MOST_CHOICES) or 1,
            temperature=_number(body, "temperature", 0, 2, 1.0),
            shaping=_shaping(body),
            most=most,
            stops=_stops(body.get("stop")),
            seed=secrets.randbits(62) if seed is None else seed,
            alternatives=(_whole(body, "top_logprobs", 0, _MOST_ALTERNATIVES) or 0) if told else None,
            schema=schema_of(response_format),
            tools=tools,
            tool_choice=choice,
            effort=_text(body, "reasoning_effort"),
            stream=_flag(body, "stream"),
            includes_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )


def _shaping(body: Body) -> Shaping | None:
    given = body.get("logit_bias") or {}
    if not isinstance(given, Mapping):
        raise refusals.wrong_type("an object", given, "logit_bias")
    bias = {}
    for token in given:
        if not (str(token).isascii() and str(token).isdecimal()):
            raise refusals.invalid(f"'{str(token)[:40]}' is no token id", "logit_bias")
        bias[int(token)] = _number(given, token, -100, 100, 0.0, param=f"logit_bias.{token}")
    shaping = Shaping(
        top_p=_number(body, "top_p", 0, 1, 1.0),
        frequency_penalty=_number(body, "frequency_penalty", -2, 2, 0.0),
        presence_penalty=_number(body, "presence_penalty", -2, 2, 0.0),
        logit_bias=bias,
    )
    return None if shaping == Shaping() else shaping


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) for s in stops):
        raise refusals.invalid(f"expected a string or at most {_MOST_STOPS} strings", "stop")
    return tuple(stop for stop in stops if stop)


def _tools(body: Body) -> tuple[Sequence[Mapping[str, Any]], str | Mapping[str, Any]]:
    tools, choice = body.get("tools") or [], body.get("tool_choice") or "auto"
    if not isinstance(tools, list):
        raise refusals.wrong_type("an array", tools, "tools")
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f"Invalid 'tools[{place}]': only functions with a name can be called here.",
                param=f"tools[{place}]",
                code="invalid_value",
            )
    return tools, choice


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise refusals.wrong_type("a boolean", value, name)
    return bool(value)


def _text(body: Body, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise refusals.wrong_type("a string", value, name)
    return value


def _whole(body: Body, name: str, low: int, high: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise refusals.wrong_type("an integer", value, name)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise refusals.invalid(f"expected an integer {bounds}, not {value}", name)
    return value


def _number(
    body: Body, name: str, low: float, high: float, default: float, *, param: str | None = None
) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusals.wrong_type("a number", value, param or name)
    if not low <= value <= high:
        raise refusals.invalid(f"expected a number from {low:g} to {high:g}, not {value}", param or name)
    return float(value)

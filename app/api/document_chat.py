"""Schemas of chat completions: the request as `services/chat_request.py` reads it, the answers."""

from app.api.document_schema import Schema, closed, nullable, reference, text
from app.api.schemas.completions import NEW_LABELS
from app.core.fields import schema_of
from app.services import chat_request
from app.services.chat_answer import ENDINGS

_COUNT = {"type": "integer", "minimum": 0}
_METADATA = {"type": "object", "additionalProperties": text()}
_TOP = closed({"token": text(), "logprob": {"type": "number"}, "bytes": nullable({"type": "array"})})
_LOGPROBS = nullable(
    closed(
        {
            "content": {
                "type": "array",
                "items": closed(_TOP["properties"] | {"top_logprobs": {"type": "array", "items": _TOP}}),
            },
            "refusal": {"type": "null"},
        }
    )
)
_CALL = closed(
    {
        "id": text(),
        "type": text(const="function"),
        "function": closed({"name": text(), "arguments": text()}),
    }
)


def components() -> dict[str, Schema]:
    """Return the schemas by their names in the document."""
    return {
        "NewCompletion": schema_of(chat_request.FIELDS, chat_request.REQUIRED),
        "NewLabels": schema_of(NEW_LABELS) | {"required": ["metadata"]},
        "Completion": closed(_completion()),
        "StoredCompletion": closed(_completion() | _asked()),
        "StoredCompletions": _page("StoredCompletion"),
        "StoredMessage": _message(),
        "StoredMessages": _page("StoredMessage"),
        "CompletionUsage": _usage(),
    }


def _completion() -> Schema:
    message = closed(
        {
            "role": text(const="assistant"),
            "content": nullable(text()),
            "refusal": {"type": "null"},
            "annotations": {"type": "array", "maxItems": 0},
            "tool_calls": {"type": "array", "items": _CALL},
            "reasoning_content": text(description="What a reasoning model thought before it answered."),
        },
        optional=("tool_calls", "reasoning_content"),
    )
    choice = {
        "index": _COUNT,
        "message": message,
        "logprobs": _LOGPROBS,
        "finish_reason": text(enum=list(ENDINGS)),
    }
    return {
        "id": text(),
        "object": text(const="chat.completion"),
        "created": {"type": "integer"},
        "model": text(),
        "choices": {"type": "array", "items": closed(choice)},
        "usage": reference("CompletionUsage"),
        "service_tier": text(const="default"),
        "system_fingerprint": text(),
    }


def _asked() -> Schema:
    number = {"type": "number"}
    return {
        "request_id": text(),
        "metadata": _METADATA,
        "tool_choice": {},
        "seed": nullable({"type": "integer"}),
        "top_p": number,
        "temperature": number,
        "presence_penalty": number,
        "frequency_penalty": number,
        "input_user": nullable(text()),
        "tools": nullable({"type": "array"}),
        "response_format": nullable({"type": "object"}),
    }


def _message() -> Schema:
    properties = {
        "id": text(),
        "role": text(),
        "content": nullable(text()),
        "name": nullable(text()),
        "content_parts": nullable({"type": "array"}),
        "tool_calls": {"type": "array", "items": _CALL},
        "tool_call_id": text(),
        "refusal": text(),
    }
    return closed(properties, optional=("tool_calls", "tool_call_id", "refusal"))


def _usage() -> Schema:
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    read = closed({"cached_tokens": _COUNT, "audio_tokens": _COUNT})
    wrote = ("reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
    return closed(
        dict.fromkeys(counts, _COUNT)
        | {"prompt_tokens_details": read, "completion_tokens_details": closed(dict.fromkeys(wrote, _COUNT))}
    )


def _page(name: str) -> Schema:
    return closed(
        {
            "object": text(const="list"),
            "data": {"type": "array", "items": reference(name)},
            "has_more": {"type": "boolean"},
            "first_id": nullable(text()),
            "last_id": nullable(text()),
        }
    )

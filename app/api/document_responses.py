"""Schemas of responses: the request as `services/response_request.py` reads it, the answer and its items."""

from app.api.document_schema import Schema, closed, nullable, text
from app.core.fields import schema_of
from app.services import response_request

_COUNT = {"type": "integer", "minimum": 0}
_LIST = {"type": "array"}
_OBJECT = {"type": "object"}
_KINDS = ("message", "reasoning", "function_call", "function_call_output")


def components() -> dict[str, Schema]:
    """Return the schemas by their names in the document."""
    page = {
        "object": text(const="list"),
        "data": {"type": "array", "items": _item()},
        "has_more": {"type": "boolean"},
        "first_id": nullable(text()),
        "last_id": nullable(text()),
    }
    return {
        "NewResponse": schema_of(response_request.FIELDS, response_request.REQUIRED),
        "CountedInput": schema_of(response_request.COUNTED, response_request.REQUIRED),
        "Response": _response(),
        "ResponseItems": closed(page),
    }


def _response() -> Schema:
    number, integer = {"type": "number"}, {"type": "integer"}
    usage = {
        "input_tokens": _COUNT,
        "input_tokens_details": closed({"cached_tokens": _COUNT, "cache_write_tokens": _COUNT}),
        "output_tokens": _COUNT,
        "output_tokens_details": closed({"reasoning_tokens": _COUNT}),
        "total_tokens": _COUNT,
    }
    return closed(
        {
            "id": text(),
            "object": text(const="response"),
            "created_at": integer,
            "completed_at": nullable(integer),
            "status": text(enum=["cancelled", "completed", "failed", "in_progress", "incomplete", "queued"]),
            "error": nullable(closed({"code": text(), "message": text()})),
            "incomplete_details": nullable(closed({"reason": text()})),
            "model": text(),
            "output": {"type": "array", "items": _item()},
            "usage": nullable(closed(usage)),
            "background": {"type": "boolean"},
            "instructions": nullable(text()),
            "max_output_tokens": nullable(_COUNT),
            "max_tool_calls": nullable(_COUNT),
            "metadata": {"type": "object", "additionalProperties": text()},
            "parallel_tool_calls": {"type": "boolean"},
            "previous_response_id": nullable(text()),
            "prompt_cache_key": nullable(text()),
            "reasoning": closed({"effort": nullable(text()), "summary": nullable(text())}),
            "safety_identifier": nullable(text()),
            "service_tier": text(const="default"),
            "store": {"type": "boolean"},
            "temperature": number,
            "text": closed({"format": _OBJECT, "verbosity": text()}),
            "tool_choice": {"anyOf": [text(), _OBJECT]},
            "tools": _LIST,
            "top_logprobs": _COUNT,
            "top_p": number,
            "truncation": text(const="disabled"),
            "user": nullable(text()),
        }
    )


def _item() -> Schema:
    properties = {
        "id": text(),
        "type": text(enum=list(_KINDS)),
        "status": text(enum=["in_progress", "completed", "incomplete"]),
        "role": text(),
        "content": _LIST,
        "summary": _LIST,
        "call_id": text(),
        "name": text(),
        "arguments": text(),
        "output": {"anyOf": [text(), _LIST]},
    }
    return closed(properties, optional=tuple(name for name in properties if name not in ("id", "type")))

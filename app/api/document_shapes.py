"""What the OpenAPI document says beyond FastAPI's reading of the routes: bodies, answers of plain data.

Keyed by the name of the route's function. Only `document.py` reads it; a test compares it with the routes.
"""

from typing import Any

from pydantic import BaseModel

from app.api import document_chat, document_jobs, document_responses, document_results
from app.api.document_schema import Schema, closed, json_content, nullable, reference, text
from app.api.schemas import graders, permissions, uploads, webhooks
from app.core.status import STATUSES
from app.services.files import PURPOSES
from app.services.webhooks import EVENT_TYPES

_EXPIRY = closed(
    {
        "anchor": text(enum=["created_at"]),
        "seconds": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    }
)
# Properties of answers that their models leave open, because services keep them as plain JSON.
SHARPENED: dict[str, Schema] = {
    "JobObject": {"method": document_jobs.METHOD, "status": text(enum=list(STATUSES))},
    "FileObject": {"status": text(enum=["uploaded", "processed", "error"])},
    "UploadObject": {"status": text(enum=["pending", "completed", "cancelled", "expired"])},
    "EventObject": {
        "level": text(enum=["info", "warn", "error"]),
        "type": text(enum=["message", "metrics"]),
    },
    "ValidatedGrader": {"grader": reference("Grader")},
    "SavedGraderObject": {"grader": reference("Grader")},
    "VersionObject": {"grader": reference("Grader")},
}

ANSWERS: dict[str, Schema] = {
    "retrieve_content": {"application/octet-stream": {"schema": text(format="binary")}},
    "retrieve_export": {"application/octet-stream": {"schema": text(format="binary")}},
    "retrieve_evaluation": json_content("Evaluation"),
    "list_items": json_content("EvaluationItems"),
    "list_rollouts": json_content("Rollouts"),
    "try_grader": json_content("Trial"),
    "create_completion": json_content("Completion")
    | {"text/event-stream": {"schema": text(description="Chunks, then `[DONE]`.")}},
    "list_completions": json_content("StoredCompletions"),
    "retrieve_completion": json_content("StoredCompletion"),
    "update_completion": json_content("StoredCompletion"),
    "list_messages": json_content("StoredMessages"),
    "create_response": json_content("Response")
    | {"text/event-stream": {"schema": text(description="Events, each with its type and number.")}},
    "retrieve_response": json_content("Response"),
    "cancel_response": json_content("Response"),
    "list_input_items": json_content("ResponseItems"),
}

# Routes without an id in their path that answer 404 for one in their body.
REFERRING = frozenset({"try_grader", "create_completion", "create_response", "count_input_tokens"})

_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": text(minLength=1, maxLength=255, pattern=r"^[!-~]+$"),
    "description": "A second request with the same key and body returns the first one's object.",
}
_LABELS = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": text()},
    "description": "`metadata[key]=value`, repeatable; `metadata=null` asks for objects without any.",
}
PARAMETERS: dict[str, list[Schema]] = {
    "create_file": [_ONCE],
    "create_job": [_ONCE],
    "list_jobs": [_LABELS],
    "list_completions": [_LABELS],
}


def bodies() -> dict[str, Schema]:
    """Return each route's request body, by the name of its function."""
    shapes: dict[str, type[BaseModel]] = {
        "create_upload": uploads.NewUpload,
        "complete_upload": uploads.Completion,
        "run_grader": graders.RunBody,
        "validate_grader": graders.OnlyGrader,
        "create_version": graders.OnlyGrader,
        "create_grader": graders.NewGrader,
        "update_grader": graders.NewName,
        "try_grader": graders.TrialBody,
        "create_permissions": permissions.NewPermissions,
        "create_endpoint": webhooks.NewEndpoint,
        "update_endpoint": webhooks.ChangedEndpoint,
        "rotate_secret": webhooks.Rotation,
        "test_endpoint": webhooks.Trial,
    }
    form = {"file": text(format="binary"), "purpose": text(enum=list(PURPOSES)), "expires_after": _EXPIRY}
    parts = {"data": text(format="binary")}
    found = {name: {"application/json": {"schema": _body(shape)}} for name, shape in shapes.items()}
    found["create_job"] = json_content("NewJob")
    found["create_completion"] = json_content("NewCompletion")
    found["update_completion"] = json_content("NewLabels")
    found["create_response"] = json_content("NewResponse")
    found["count_input_tokens"] = json_content("CountedInput")
    found["create_file"] = {
        "multipart/form-data": {
            "schema": closed(form, optional=("expires_after",)),
            "encoding": {"expires_after": {"style": "deepObject", "explode": True}},
        }
    }
    found["add_part"] = {"multipart/form-data": {"schema": closed(parts)}}
    return {name: {"required": True, "content": content} for name, content in found.items()}


def _body(shape: type[BaseModel]) -> Any:
    schema = shape.model_json_schema(mode="validation")
    known: Schema = {
        "grader": reference("NewGrader"),
        "purpose": text(enum=list(PURPOSES)),
        "expires_after": nullable(_EXPIRY),
        "event_type": text(enum=list(EVENT_TYPES)),
    }
    schema["properties"] |= {name: known[name] for name in schema["properties"] if name in known}
    return _inlined(schema, schema.pop("$defs", {}))


def _inlined(schema: Any, parts: Schema) -> Any:
    """Put a body's own parts where it refers to them: `$defs` would be sought at the document's root."""
    if isinstance(schema, list):
        return [_inlined(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in parts:
        return _inlined(parts[name], parts)
    return {key: _inlined(one, parts) for key, one in schema.items()}


def components() -> dict[str, Schema]:
    """Return the schemas that no answer's model gives."""
    error = closed({"message": text(), "type": text(), "param": nullable(text()), "code": nullable(text())})
    return {
        "Error": closed({"error": error}),
        **document_jobs.components(),
        **document_results.components(),
        **document_chat.components(),
        **document_responses.components(),
    }

"""The API's own OpenAPI document: what FastAPI reads off the routes, and what it can't see there.

Routes read their bodies themselves, so those stand in `document_shapes.py`; here they are joined with the
answers, errors and headers that every route has. Called by `app/main.py`, which serves it.
"""

from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api import document_shapes as shapes
from app.api.document_schema import json_content

_ABOUT = """OpenAI's API of fine-tuning, and of the models it makes, served by your own machine.

OpenAI's clients work unchanged with this address as `base_url`. Every answer carries `x-request-id`. An error
is always `{"error": {"message", "type", "param", "code"}}`. Unknown query parameters are ignored; an unknown
key in a body is a 400 that names it. Routes tagged *extensions* are Tunesmith's own.
"""
_HEADERS = ("x-request-id", "openai-processing-ms", "openai-version", "openai-organization")
# FastAPI's own error shapes, never sent; and rows of plain data, described in `document_shapes.py`.
_UNUSED = (
    "HTTPValidationError",
    "ValidationError",
    "Listed_dict_str__Any__",
    "ListedWithEnds_dict_str__Any__",
)
_ERRORS = {
    "400": "The request is wrong; `param` names what.",
    "401": "No key, or one that is not valid.",
    "403": "The key may not do this.",
    "404": "There is no such object in the key's project.",
    "413": "The body is larger than it may be.",
    "429": "Too many requests; `retry-after` says when to come back.",
    "500": "A fault of the server; its log tells more under the request's id.",
    "503": "A part of the service can't be reached at the moment.",
    "507": "The disk is full. Clients are told not to retry.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the API application."""
    made = get_openapi(
        title="Tunesmith", version="0.1.0", description=_ABOUT, routes=app.routes, servers=[{"url": "/v1"}]
    )
    schemas: dict[str, Any] = {
        name: _closed(schema) for name, schema in made["components"]["schemas"].items() if name not in _UNUSED
    }
    schemas |= shapes.components()
    for name, properties in shapes.SHARPENED.items():
        schemas[name]["properties"] |= deepcopy(properties)
    bodies = shapes.bodies()
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _complete(operation, path, bodies.get(operation["operationId"]))
    made["components"] = {
        "schemas": schemas,
        "headers": {name: {"schema": {"type": "string"}, "required": True} for name in _HEADERS},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    made["security"] = [{"key": []}]
    return made


def _complete(operation: dict[str, Any], path: str, body: dict[str, Any] | None) -> None:
    name = operation["operationId"]
    if body is not None:
        operation["requestBody"] = body
    parameters = [*operation.get("parameters", []), *deepcopy(shapes.PARAMETERS.get(name, []))]
    if parameters:
        operation["parameters"] = parameters
    good = operation["responses"]["200"] | {"description": "Done."}
    if name in shapes.ANSWERS:
        good["content"] = deepcopy(shapes.ANSWERS[name])
    operation["responses"] = {"200": good} | {
        status: {"description": text, "content": json_content("Error")}
        for status, text in _ERRORS.items()
        if (status != "404" or "{" in path or name in shapes.REFERRING)
        and (status not in ("413", "507") or body is not None)
    }
    for answer in operation["responses"].values():
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an answer as what it is: it has no further keys."""
    if schema.get("type") == "object" and "properties" in schema:
        return {**schema, "additionalProperties": False}
    return schema

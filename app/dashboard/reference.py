"""The API reference: our OpenAPI document as one page. Another face made it: it comes in as plain data."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.dashboard import render
from app.dashboard.reference_contexts import (
    ReferenceGroup,
    ReferenceKey,
    ReferenceObject,
    ReferencePage,
    ReferenceRoute,
)
from app.dashboard.visitor import Reading, SignedIn

router = APIRouter()
_PLACES = {"query": "query", "path": "address", "header": "header"}


@router.get("/api-reference")
def show_reference(request: Request, visitor: SignedIn, session: Reading) -> Response:
    """Show every route of the API with what it takes and answers, and every object."""
    document: Mapping[str, Any] = request.app.state.document
    page = ReferencePage(
        frame=visitor.frame(session, title="API reference", section="api-reference"),
        base_url=f"{request.base_url}v1",
        groups=tuple(_groups(document)),
        objects=tuple(
            ReferenceObject(name, str(schema.get("description", "")), tuple(_keys(schema, "")))
            for name, schema in sorted(document["components"]["schemas"].items())
        ),
    )
    return render.page("reference/reference.html", page)


def _groups(document: Mapping[str, Any]) -> Iterator[ReferenceGroup]:
    routes: dict[str, list[ReferenceRoute]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            routes.setdefault(tag, []).append(_route(method, path, operation))
    for tag, found in routes.items():
        yield ReferenceGroup(f"routes-{tag.replace(' ', '-')}", tag[0].upper() + tag[1:], tuple(found))


def _route(method: str, path: str, operation: Mapping[str, Any]) -> ReferenceRoute:
    keys = [
        ReferenceKey(
            one["name"],
            _PLACES[one["in"]],
            one.get("required", False),
            kind(one["schema"]),
            str(one.get("description", "")),
        )
        for one in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {})
    for schema in (content["schema"] for content in body.values()):
        if "$ref" in schema:
            keys.append(ReferenceKey("", "body", True, kind(schema), ""))
        keys += _keys(schema, "body")
    answer = " or ".join(
        kind(content["schema"]) if "json" in media else media
        for media, content in operation["responses"]["200"]["content"].items()
    )
    return ReferenceRoute(method.upper(), f"/v1{path}", operation.get("description", ""), tuple(keys), answer)


def _keys(schema: Mapping[str, Any], place: str) -> Iterator[ReferenceKey]:
    for name, one in schema.get("properties", {}).items():
        is_required = name in schema.get("required", [])
        yield ReferenceKey(name, place, is_required, kind(one), str(one.get("description", "")))


def kind(schema: Mapping[str, Any]) -> str:
    """Say in a few words what a schema allows."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for joint in ("anyOf", "oneOf"):
        if joint in schema:
            return " or ".join(dict.fromkeys(kind(one) for one in schema[joint]))
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return ", ".join(f'"{value}"' if isinstance(value, str) else str(value).lower() for value in values)
    name = schema.get("type", "anything")
    if name == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if name == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {kind(schema['additionalProperties'])}"
    name = " or ".join(name) if isinstance(name, list) else str(name)
    return f"{name}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    words = [
        f"{text} {schema[key]:g}"
        for key, text in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
        )
        if key in schema
    ]
    return f" ({', '.join(words)})" if words else ""

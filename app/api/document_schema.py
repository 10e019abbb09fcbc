"""Small words for JSON schemas, of which the OpenAPI document's are made. They know no object of the wire."""

from typing import Any

Schema = dict[str, Any]


def reference(name: str) -> Schema:
    """Return a reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(name: str) -> Schema:
    """Return the content of a JSON body that is a component."""
    return {"application/json": {"schema": reference(name)}}


def text(**more: Any) -> Schema:
    """Return a string."""
    return {"type": "string", **more}


def nullable(schema: Schema) -> Schema:
    """Return what `schema` allows, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def closed(properties: Schema, *, optional: tuple[str, ...] = (), **more: Any) -> Schema:
    """Return an object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
        **more,
    }


def list_of(schema: Schema) -> Schema:
    """Return the envelope of a list."""
    data = {"type": "array", "items": schema}
    return closed({"object": text(const="list"), "data": data, "has_more": {"type": "boolean"}})

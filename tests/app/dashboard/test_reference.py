"""The API reference shows the document that the service serves, all of it."""

import html
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.dashboard.reference import kind


def test_every_route_and_object_stands_on_the_page(browser: TestClient) -> None:
    text = html.unescape(browser.get("/api-reference").text)
    document = browser.get("/v1/openapi.json").json()
    routes = [(m, path) for path, operations in document["paths"].items() for m in operations]
    for method, path in routes:
        assert f"<code>{method.upper()} /v1{path}</code>" in text
    assert text.count('data-testid="route"') == len(routes)
    assert text.count('data-testid="object"') == len(document["components"]["schemas"])
    assert "Idempotency-Key" in text
    assert "samples_per_prompt" in text


def test_a_person_finds_it_from_any_page(browser: TestClient) -> None:
    assert 'href="/api-reference"' in browser.get("/models").text
    assert 'href="/v1/openapi.json"' in browser.get("/api-reference").text


def test_it_is_for_those_who_signed_in(anonymous: TestClient) -> None:
    assert anonymous.get("/api-reference").status_code in (303, 401)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#/components/schemas/JobObject"}, "JobObject"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"enum": ["a", 1]}, '"a", 1'),
        ({"const": True}, "true"),
        ({"type": "array", "items": {"type": "integer"}}, "list of integer"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "object of number"),
        ({"type": ["boolean", "null"]}, "boolean or null"),
        ({"type": "integer", "minimum": 1, "maximum": 256}, "integer (at least 1, at most 256)"),
        ({"type": "number", "exclusiveMinimum": 0}, "number (above 0)"),
        ({}, "anything"),
    ],
)
def test_a_schema_in_words(schema: dict[str, Any], words: str) -> None:
    assert kind(schema) == words

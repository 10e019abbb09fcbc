"""The OpenAPI document is complete, and true: a tool that reads it finds the service doing what it says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi.routing import APIRoute

from app.api.deps import json_object
from app.api.multipart import receive_part, receive_upload
from app.api.routes import NOUNS
from app.core import migrate
from app.core.context import Context
from app.core.settings import Settings
from app.services import api_keys
from tests.app.api.server import MODEL, Server, serving
from tests.app.dashboard import seed
from tests.engine import engine_running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ROUTES = [route for noun in NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
READERS = {json_object, receive_upload, receive_part}


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    """The document as anybody gets it, without a key."""
    answer = httpx.get(f"{server.url}/v1/openapi.json", trust_env=False)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_every_route_stands_in_the_document(document: dict[str, Any]) -> None:
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert described == {(m.lower(), route.path_format) for route in ROUTES for m in route.methods}
    names = [one["operationId"] for operations in document["paths"].values() for one in operations.values()]
    assert len(set(names)) == len(names)


def test_a_route_that_reads_a_body_describes_it(document: dict[str, Any]) -> None:
    for route in ROUTES:
        for method in route.methods:
            operation = document["paths"][route.path_format][method.lower()]
            reads = any(dependency.call in READERS for dependency in route.dependant.dependencies)
            assert ("requestBody" in operation) == reads, route.name


def test_no_answer_is_just_anything(document: dict[str, Any]) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            for content in operation["responses"]["200"]["content"].values():
                assert content["schema"], operation["operationId"]
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("additionalProperties") is False or "oneOf" in schema, name


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    components = document["components"]
    for kind, name in re.findall(r"#/components/(\w+)/([^'\"]+)", str(document)):
        assert name in components[kind]
    assert "#/$defs" not in str(document)


@pytest.fixture
def inhabited(settings: Settings) -> Iterator[tuple[Server, str, seed.Seeded]]:
    """A server over a project with jobs in every status, and a key of that project."""
    migrate.upgrade(settings)
    context = Context.build(settings)
    made = seed.seed(context)
    with context.db.transaction() as session:
        _, key = api_keys.create_key(session, project_id=made.project_id, name="schemathesis")
    context.db.dispose()
    with engine_running() as engine, serving(settings) as server:
        engine.write_providers(settings.root, MODEL, seed.MODEL, seed.LARGER)
        yield server, key, made


def test_the_service_does_what_the_document_says(
    inhabited: tuple[Server, str, seed.Seeded], tmp_path: Path
) -> None:
    """Thousands of generated requests: no 5xx, no status, header or shape that is not documented."""
    server, key, made = inhabited
    jobs = (made.running, made.succeeded, made.failed, made.paused, made.queued)
    (tmp_path / "schemathesis.toml").write_text(
        f"dictionaries.jobs.values = {list(jobs)}\n"
        f"dictionaries.files.values = {[made.training_file]}\n"
        "[parameters]\n"
        '"path.job_id" = { dictionary = "jobs", probability = 0.7 }\n'
        '"path.file_id" = { dictionary = "files", probability = 0.7 }\n'
    )
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{server.url}/v1/openapi.json"),
            *("--header", f"Authorization: Bearer {key}"),
            *("--checks", ",".join(CHECKS)),
            *("--phases", "coverage,fuzzing"),
            *("--max-examples", "6", "--seed", "1", "--no-shrink", "--continue-on-failure"),
            *("--warnings", "off"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-12_000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", ran.stdout)
    assert cases is not None, ran.stdout
    assert int(cases[1]) == int(cases[2]) > 1_000
    print(f"SCHEMATHESIS {cases[1]} cases, 0 failures")


def test_completions_are_as_described(server: Server, document: dict[str, Any]) -> None:
    """Schemathesis seldom guesses a model's name, so what a model answers is looked at here."""
    messages = [{"role": "user", "content": "one two"}]
    tool = {"type": "function", "function": {"name": "look"}}
    body = {"model": MODEL, "messages": messages, "store": True, "logprobs": True, "top_logprobs": 1}
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        made = server.raw("POST", "/v1/chat/completions", json=body).json()
        engine.calls = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
        called = server.raw("POST", "/v1/chat/completions", json=body | {"tools": [tool]}).json()
    address = f"/v1/chat/completions/{made['id']}"
    for name, value in {
        "NewCompletion": body,
        "Completion": made,
        "StoredCompletion": server.raw("GET", address).json(),
        "StoredCompletions": server.raw("GET", "/v1/chat/completions").json(),
        "StoredMessages": server.raw("GET", f"{address}/messages").json(),
    }.items():
        _check(document, name, value)
    _check(document, "Completion", called)


def test_responses_are_as_described(server: Server, document: dict[str, Any]) -> None:
    tool = {"type": "function", "name": "look"}
    body = {"model": MODEL, "input": "one two", "top_logprobs": 1}
    with engine_running() as engine:
        engine.write_providers(server.context.settings.root, MODEL)
        made = server.raw("POST", "/v1/responses", json=body).json()
        engine.thoughts = "hm"
        engine.calls = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
        called = server.raw("POST", "/v1/responses", json=body | {"tools": [tool]}).json()
        engine.delay = 60.0
        behind = body | {"background": True}
        queued = server.raw("POST", "/v1/responses", json=behind).json()
        cancelled = server.raw("POST", f"/v1/responses/{queued['id']}/cancel").json()
    for asked in (body, behind):
        _check(document, "NewResponse", asked)
    for response in (made, called, queued, cancelled):
        _check(document, "Response", response)
    items = server.raw("GET", f"/v1/responses/{made['id']}/input_items").json()
    _check(document, "ResponseItems", items)


def _check(document: dict[str, Any], name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema_rs.Draft202012Validator(schema).validate(value)

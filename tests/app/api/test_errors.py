"""Every error of every route is the envelope; malformed input is a 400 and never a 500."""

import json
import logging
from typing import Any

import pytest
from sqlalchemy import event
from starlette.routing import Route

from app.api.routes import NOUNS
from app.services import models
from tests.app.api.server import BOTH, METHOD, MODEL, Server

JSON = {"content-type": "application/json"}


def _error(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["openai-version"] == "2020-10-01"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    body: dict[str, dict[str, Any]] = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    "path",
    ["/v1/nowhere", "/v1/", "/v1/files/", "/v1/files/a/b", "/v1/fine_tuning", "/v1/models/", "/v1//files"],
)
def test_an_unknown_address_is_404(server: Server, path: str) -> None:
    error = _error(server.raw("GET", path), 404)
    assert error["type"] == "invalid_request_error"


def test_v1_itself_is_404(server: Server) -> None:
    _error(server.raw("GET", "/v1"), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/files"),
        ("DELETE", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/models"),
        ("PATCH", "/v1/fine_tuning/jobs/ftjob-x"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-x/cancel"),
        ("OPTIONS", "/v1/files"),
        ("BREW", "/v1/files"),
    ],
)
def test_a_wrong_method_is_405(server: Server, method: str, path: str) -> None:
    answer = server.raw(method, path)
    assert _error(answer, 405)["code"] == "method_not_supported"
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "param", "code"),
    [
        ("/v1/files?limit=0", "limit", "integer_below_min_value"),
        ("/v1/files?limit=-1", "limit", "integer_below_min_value"),
        ("/v1/files?limit=10001", "limit", "integer_above_max_value"),
        ("/v1/files?limit=" + "9" * 5000, "limit", None),
        ("/v1/files?limit=ten", "limit", "invalid_type"),
        ("/v1/files?limit=1.5", "limit", "invalid_type"),
        ("/v1/files?limit=", "limit", "invalid_type"),
        ("/v1/files?limit=NaN", "limit", "invalid_type"),
        ("/v1/files?order=up", "order", "invalid_value"),
        ("/v1/files?after=file-none", "after", None),
        ("/v1/files?after=" + "x" * 5000, "after", None),
        ("/v1/files?after=%00", None, "invalid_value"),
        ("/v1/files?purpose=%ed%a0%80", None, "ok"),
        ("/v1/files/%00", None, "invalid_value"),
        ("/v1/files/%ff%fe", "id", "404"),
        ("/v1/files/..%2f..%2fetc", None, "404"),
        ("/v1/models/%00", None, "invalid_value"),
        ("/v1/models/..%2f..%2fetc%2fpasswd", "model", "404"),
        ("/v1/fine_tuning/jobs?limit=101", "limit", "integer_above_max_value"),
        ("/v1/fine_tuning/jobs?after=file-x", "after", None),
        ("/v1/fine_tuning/jobs?metadata=red", "metadata", "invalid_value"),
        (
            "/v1/fine_tuning/jobs?" + "&".join(f"metadata[{n}]=x" for n in range(40)),
            "metadata",
            "invalid_value",
        ),
        ("/v1/fine_tuning/jobs?metadata[]=x", None, "ok"),
        ("/v1/fine_tuning/jobs?metadata[=x&metadata]=y", None, "ok"),
        ("/v1/fine_tuning/jobs?metadata[" + "%22%27%5c$.*" + "]=x", None, "ok"),
    ],
)
@BOTH
def test_a_bad_address_never_is_a_500(server: Server, path: str, param: str | None, code: str | None) -> None:
    answer = server.raw("GET", path)
    if code == "ok":
        assert answer.status_code == 200, answer.text
        return
    error = _error(answer, 404 if code == "404" else 400)
    assert error["param"] == param
    if code not in (None, "404"):
        assert error["code"] == code


BODIES: list[bytes] = [
    b"",
    b"{",
    b"nonsense",
    b"[]",
    b'"text"',
    b"null",
    b"5",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b'{"model": NaN}',
    b'{"seed": Infinity}',
    b'{"seed": -Infinity}',
    b'{"seed": 1e999}',
    b'{"seed": 123456789012345678901234567890}',
    b'{"seed": ' + b"1" * 10_000 + b"}",
    b'{"model": "a", "model": "b"}',
    b'{"metadata": {"a": "1", "a": "2"}}',
    b'{"model": "\\u0000"}',
    b'{"model": "\\ud800"}',
    b'{"metadata": {"\\udfff": "x"}}',
    b'{"metadata": {"a\\u0000": "x"}}',
    b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b'{"a": ' * 5_000 + b"1" + b"}" * 5_000,
    b'{"a": 1} trailing',
]


@BOTH
def test_malformed_json_is_400_on_every_route_that_takes_it(server: Server) -> None:
    for body in BODIES:
        error = _error(server.raw("POST", "/v1/fine_tuning/jobs", headers=JSON, content=body), 400)
        assert error["type"] == "invalid_request_error"
        assert error["code"] in ("invalid_json", "invalid_type"), (body[:40], error)
    assert server.raw("GET", "/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_another_content_type_is_refused(server: Server, content_type: str | None) -> None:
    headers = {"content-type": content_type}
    error = _error(server.raw("POST", "/v1/fine_tuning/jobs", headers=headers, content=b"{}"), 400)
    assert error["code"] == "unsupported_content_type"


def _mutations(value: Any) -> list[Any]:
    """Return `value` with each of its places, at any depth, replaced by each odd value."""
    odd: list[Any] = [
        None,
        True,
        -1,
        2**62,
        1.5,
        "",
        "x" * 3000,
        [],
        {},
        [[]],
        {"type": "x"},
        "‮\u2028🦄",
        "{{",
    ]
    found: list[Any] = list(odd)
    if isinstance(value, dict):
        for key in value:
            found += [value | {key: changed} for changed in _mutations(value[key])]
            found.append({k: v for k, v in value.items() if k != key})
        found.append(value | {"\u0301odd key": 1})
    return found


@BOTH
def test_no_odd_value_at_any_place_is_a_500(server: Server, training_file: str) -> None:
    grading = METHOD["reinforcement"] | {
        "hyperparameters": {"batch_size": 2, "learning_rate_multiplier": 1.0},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
        "grader_error_policy": "zero",
    }
    body = {
        "model": MODEL,
        "training_file": training_file,
        "suffix": "s",
        "seed": 1,
        "metadata": {"k": "v"},
        "integrations": [],
        "method": {"type": "reinforcement", "reinforcement": grading},
    }
    codes: dict[int, int] = {}
    for changed in _mutations(body):
        answer = server.raw(
            "POST", "/v1/fine_tuning/jobs", headers=JSON, content=json.dumps(changed).encode()
        )
        codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
        if answer.status_code != 200:
            _error(answer, 400)
    assert set(codes) == {200, 400}
    assert codes[400] > 150


def test_a_crash_is_the_envelope_and_in_the_log_under_its_id(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(models, "list_models", crash)
    with caplog.at_level(logging.ERROR):
        answer = server.raw("GET", "/v1/models")
    error = _error(answer, 500)
    assert error["type"] == "server_error"
    assert "secret detail" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
    assert any(answer.headers["x-request-id"] in record.getMessage() for record in caplog.records)


def test_a_database_that_is_gone_is_503(server: Server) -> None:
    with server.context.db.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE files RENAME TO files_gone")
    error = _error(server.raw("GET", "/v1/files"), 503)
    assert error["type"] == "server_error"


def test_every_route_asks_for_a_key(server: Server) -> None:
    routes = [route for noun in NOUNS for route in noun.router.routes if isinstance(route, Route)]
    assert len(routes) > 15
    for route in routes:
        path = route.path.replace("{model_id:path}", "x").replace("{", "").replace("}", "")
        for method in route.methods or ():
            answer = server.raw(method, f"/v1{path}", headers={"authorization": None})
            assert answer.status_code == 401, (method, path)


def test_a_database_without_room_is_507_and_not_retried(server: Server, training_file: str) -> None:
    """Reading goes on, with a key whose last use can't be noted."""
    engine = server.context.db.engine
    _, fresh = server.new_key("other")

    def full(connection: Any, *_: object) -> None:
        # No page more than there are.
        connection.execute("PRAGMA max_page_count=1")

    body = {"model": MODEL, "training_file": training_file, "method": METHOD, "suffix": "x" * 64}
    big = body | {"metadata": {f"key {n}": "x" * 512 for n in range(16)}}
    event.listen(engine, "checkout", full)
    try:
        answers = [server.raw("POST", "/v1/fine_tuning/jobs", json=big) for _ in range(20)]
        assert server.raw("GET", "/v1/files").status_code == 200
        assert server.raw("GET", "/v1/files", headers={"authorization": f"Bearer {fresh}"}).status_code == 200
    finally:
        event.remove(engine, "checkout", full)
        engine.dispose()
    last = answers[-1]
    assert last.status_code == 507, last.text
    assert last.headers["x-should-retry"] == "false"
    assert last.json()["error"]["code"] == "insufficient_storage"
    assert server.raw("POST", "/v1/fine_tuning/jobs", json=big).status_code == 200

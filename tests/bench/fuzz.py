"""Malformed requests over every route: each answer is the envelope, none a 5xx, and no byte stays behind.

The cases are generated: odd values at every place of every body, odd query values and headers on every route,
broken and hostile forms. Runs its own server on a free port with throw-away data. Run by `make bench-fuzz`.
"""

import copy
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi.routing import APIRoute

from app.api.routes import NOUNS
from app.core import migrate, refusals
from app.core.settings import Settings
from tests.app.api.server import GRADER, LINES, METHOD, MODEL, Server, serving
from tests.engine import engine_running

NESTED = b"[" * 5_000 + b"]" * 5_000
# Written into JSON as they stand, so that there may be what no encoder would write.
VALUES = (
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"-1e999",
    b"1e400",
    b"-1",
    b"0",
    b"9223372036854775808",
    b"1" * 400,
    b"1.5",
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"../../etc/passwd"',
    b'"' + b"x" * 3_000 + b'"',
    b'"\xff"',
    b"[]",
    b"[null]",
    b"{}",
    b'{"a": 1, "a": 2}',
    b'{"\\u0000": "\\udfff"}',
    NESTED,
)
QUERIES = (
    "limit=-1",
    "limit=0",
    "limit=99999999999999999999999",
    "limit=1e3",
    "limit=NaN",
    "limit=",
    "after=",
    "after=file-nothing",
    "after=%00",
    "after=%ff%fe",
    "after=" + "x" * 4_000,
    "after='%20OR%201=1--",
    "order=sideways",
    "order=%00",
    "metadata=1",
    "metadata[a]=%00",
    "metadata[%22]=b",
    "metadata[$.a]=b",
    "metadata[]=",
    "purpose=%ff",
    "step=-1",
    "step=99999999999999999999",
    "split=nowhere",
    "project_id=%ed%a0%80",
)
HEADERS: tuple[dict[str, bytes], ...] = (
    {"content-type": b"text/plain"},
    {"content-type": b"application/json; charset=utf-16"},
    {"content-type": b"multipart/form-data"},
    {"content-type": b"multipart/form-data; boundary=" + b"x" * 200},
    {"content-encoding": b"gzip"},
    {"idempotency-key": b""},
    {"idempotency-key": b"\xff" * 300},
    {"x-stainless-retry-count": b"-1"},
    {"x-stainless-retry-count": b"9" * 40},
    {"openai-project": b"\xff\xfe"},
    {"openai-organization": b"'; DROP TABLE files; --"},
    {"authorization": b"Bearer \xff\xfe"},
    {"authorization": b"Bearer " + b"x" * 5_000},
)
IDS = ("nothing", "%00", "..%2f..%2fetc", "%ff", "x" * 600, "%F0%9F%92%A9", "a%20b", "ft:x::y:ckpt-step-%2d1")
NAMES = (
    "../../x.jsonl",
    "x" * 5_000 + ".jsonl",
    "\x01\x7f.jsonl",
    ".jsonl",
    "a.jsonl/",
    "\udce4.jsonl",
    "CON.jsonl",
)


def bodies(file_id: str) -> dict[str, dict[str, Any]]:
    """Return a good body for each route that takes one."""
    reinforcement = copy.deepcopy(METHOD["reinforcement"])
    reinforcement |= {
        "hyperparameters": {"n_epochs": 1, "batch_size": "auto", "reasoning_effort": "low"},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "strict": True, "schema": {"type": "object"}},
        },
        "grader_error_policy": "zero",
    }
    reinforcement["grader"] = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": GRADER},
        "calculate_output": "exact",
    }
    webhook = {"name": "x", "url": "https://8.8.8.8/", "event_types": ["fine_tuning.job.failed"]}
    return {
        "/fine_tuning/jobs": {
            "model": MODEL,
            "training_file": file_id,
            "validation_file": file_id,
            "suffix": "a",
            "seed": 1,
            "metadata": {"a": "b"},
            "method": {"type": "reinforcement", "reinforcement": reinforcement},
        },
        "/uploads": {
            "bytes": 5,
            "filename": "a.jsonl",
            "mime_type": "x",
            "purpose": "fine-tune",
            "expires_after": {"anchor": "created_at", "seconds": 3600},
        },
        "/uploads/{upload_id}/complete": {"part_ids": ["part_x"], "md5": "0" * 32},
        "/fine_tuning/alpha/graders/run": {
            "grader": reinforcement["grader"],
            "model_sample": "4",
            "item": {"answer": "4"},
        },
        "/fine_tuning/alpha/graders/validate": {"grader": reinforcement["grader"]},
        "/fine_tuning/checkpoints/{model_id:path}/permissions": {"project_ids": ["proj_x"]},
        "/chat/completions": _completion(),
        "/responses": _response(),
        "/responses/input_tokens": {"model": MODEL, "input": "x", "instructions": "y"},
        "/chat/completions/{completion_id}": {"metadata": {"a": "b"}},
        "/webhook_endpoints": webhook,
        "/webhook_endpoints/{endpoint_id}": webhook,
        "/webhook_endpoints/{endpoint_id}/rotate_secret": {"keep_old_secret_active_for_24_hours": True},
        "/webhook_endpoints/{endpoint_id}/test": {"event_type": "fine_tuning.job.failed"},
    }


def _completion() -> dict[str, Any]:
    function = {"name": "look", "description": "x", "parameters": {"type": "object"}, "strict": True}
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
        {"role": "user", "content": "2+2?", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "a"},
    ]
    schema = {"name": "a", "strict": True, "schema": {"type": "object"}}
    return {
        "model": MODEL,
        "messages": messages,
        "temperature": 0.5,
        "top_p": 1,
        "n": 2,
        "stop": ["x"],
        "max_completion_tokens": 3,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 1,
        "logit_bias": {"1": 2},
        "presence_penalty": 0,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "store": True,
        "metadata": {"a": "b"},
        "user": "me",
    }


def _response() -> dict[str, Any]:
    parts = [{"type": "input_text", "text": "2+2?"}]
    call = {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
    function = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
    return {
        "model": MODEL,
        "input": [
            {"role": "user", "content": parts},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            call,
            {"type": "function_call_output", "call_id": "a", "output": "4"},
        ],
        "instructions": "Be short.",
        "max_output_tokens": 16,
        "temperature": 0.5,
        "top_p": 1,
        "top_logprobs": 1,
        "include": ["message.output_text.logprobs"],
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
        "tools": [function],
        "tool_choice": "auto",
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
        "stream": True,
        "store": True,
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a document, the document's own first."""
    yield path
    steps = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    for step, inner in steps:
        yield from places(inner, (*path, step))


def with_odd(document: Any, path: tuple[Any, ...], odd: bytes) -> bytes:
    """Return the document as JSON with the bytes `odd` at `path`."""
    if not path:
        return odd
    changed = copy.deepcopy(document)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = "\x1a"
    return json.dumps(changed).encode().replace(json.dumps("\x1a").encode(), odd)


def _judged(place: tuple[Any, ...], odd: bytes) -> tuple[Any, ...]:
    # null is the same as absent, so that what is then missing may be named elsewhere.
    return () if odd == b"null" else place


def routes() -> list[tuple[str, str]]:
    """Return every (method, path) of the API."""
    return sorted(
        (method, route.path)
        for noun in NOUNS
        for route in noun.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    )


def address(path: str, filler: str) -> str:
    """Return a route's address with its ids filled in."""
    steps = [filler if step.startswith("{") else step for step in path.split("/")]
    return "/v1" + "/".join(steps)


def form(name: str, filename: str, data: bytes, *more: tuple[str, str], end: bytes = b"--xYx--\r\n") -> bytes:
    """Return a form of one file part and further fields."""
    head = f'--xYx\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    body = head.encode("utf-8", "surrogateescape") + data + b"\r\n"
    for field, value in more:
        body += f'--xYx\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
    return body + end


@dataclass(frozen=True)
class Case:
    """A request, and the path of the value in its body that is odd."""

    method: str
    path: str
    headers: Mapping[str, bytes]
    body: bytes | None = None
    place: tuple[Any, ...] = ()


def cases(file_id: str) -> Iterator[Case]:
    """Yield every request."""
    as_json = {"content-type": b"application/json"}
    for path, document in bodies(file_id).items():
        for place, odd in itertools.product(places(document), VALUES):
            yield Case(
                "POST", address(path, "nothing"), as_json, with_odd(document, place, odd), _judged(place, odd)
            )
        for extra in (
            b"",
            b"{",
            b"[]",
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\x00}\x00",
            json.dumps(document | {"x": 1}).encode(),
        ):
            yield Case("POST", address(path, "nothing"), as_json, extra)
    for method, path in routes():
        content = b"{}" if method == "POST" else None
        for query in QUERIES:
            yield Case(method, f"{address(path, 'nothing')}?{query}", as_json, content)
        for headers in HEADERS:
            yield Case(method, address(path, "nothing"), headers, content)
        for odd_id in IDS:
            yield Case(method, address(path, odd_id), as_json, content)
    yield from forms()


def forms() -> Iterator[Case]:
    """Yield broken and hostile forms."""
    as_form = {"content-type": b"multipart/form-data; boundary=xYx"}
    wrong = ("purpose", "nothing")
    for path, field in (("/v1/files", "file"), ("/v1/uploads/nothing/parts", "data")):
        for name in NAMES:
            yield Case("POST", path, as_form, form(field, name, LINES, wrong))
        whole = form(field, "a.jsonl", LINES, ("purpose", "fine-tune"))
        for cut in range(0, len(whole) - 2, 9):
            yield Case("POST", path, as_form, whole[:cut])
        for odd in (
            ("expires_after[seconds]", "NaN"),
            ("expires_after[anchor]", "\x00"),
            ("\x00", "x"),
            wrong,
        ):
            yield Case("POST", path, as_form, form(field, "a.jsonl", LINES, ("purpose", "fine-tune"), odd))
        yield Case("POST", path, as_form, b"--xYx\r\n" * 200)
        yield Case("POST", path, as_form, form(field, "a.jsonl", b"", ("purpose", "fine-tune")))


def judge(case: Case, answer: httpx.Response) -> str | None:
    """Return what is wrong with an answer, if anything is."""
    if answer.status_code >= 500:
        return f"{answer.status_code}"
    if answer.status_code < 400:
        return None
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} without an envelope"
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return f"{answer.status_code} with a broken envelope"
    if case.place and answer.status_code == 400 and error["code"] != "invalid_json":
        wanted = refusals.joined(case.place[0], case.place[1:])
        # A value may be refused where it stands, deeper inside it, or for what its parent then is.
        named = error["param"] or ""
        if not (named and (named.startswith(wanted) or wanted.startswith(named))):
            return f"400 naming {error['param']!r} where {wanted!r} is odd"
    return None


def run(server: Server, file_id: str) -> tuple[int, int, list[str]]:
    """Send every case; return how many there were, how many were 5xx, and what was wrong."""
    count, crashed, wrong = 0, 0, []
    key = {"authorization": f"Bearer {server.key}".encode()}
    for case in cases(file_id):
        count += 1
        headers = {name.encode(): value for name, value in (key | dict(case.headers)).items()}
        try:
            answer = server.http.request(
                case.method, server.url + case.path, headers=headers, content=case.body
            )
        except httpx.HTTPError as problem:
            wrong.append(f"{case}: {problem!r}"[:500])
            continue
        crashed += answer.status_code >= 500
        if (why := judge(case, answer)) is not None:
            wrong.append(f"{why}: {case} {answer.text}"[:700])
    return count, crashed, wrong


def main() -> int:
    """Run the corpus; 1 when anything was a 5xx, no envelope, or left bytes behind."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-fuzz-") as name:
        settings = Settings(
            data=Path(name), broker_url="memory://", max_json_bytes=200_000, wrong_keys_per_minute=0
        )
        migrate.upgrade(settings)
        with engine_running() as engine, serving(settings) as server:
            engine.write_providers(settings.root, MODEL)
            made = server.raw(
                "POST", "/v1/files", files={"file": ("a.jsonl", LINES)}, data={"purpose": "fine-tune"}
            )
            file_id = made.json()["id"]
            count, crashed, wrong = run(server, file_id)
            kept = {row["id"] for row in server.raw("GET", "/v1/files").json()["data"]}
            folders = [settings.root / "files", settings.root / "uploads"]
            left = sum(
                path.stat().st_size
                for folder in folders
                for path in folder.rglob("*")
                if path.is_file() and path.name not in kept
            )
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    print(f"FUZZ {count:,} cases, {crashed} 5xx, {left} bytes left, {len(wrong)} wrong answers")
    return 0 if not crashed and not left and not wrong and count >= 2_000 else 1


if __name__ == "__main__":
    sys.exit(main())

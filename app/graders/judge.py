"""score_model and label_model: a language model judges an answer, over any OpenAI-compatible API.

Asks, retries, paces, counts and reads; what is said to the judge stands in `judge_prompt`, what was already
paid for in `judgements`. A judge that is down is nobody's fault, one that refuses or talks nonsense is the
grader's; neither is ever the answer's 0. Called by `grade`, through `means`.

Source: wire.md §3.1, reliability.md §7.2.
"""

import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from app.core.engines import EngineRefused, Served
from app.core.outbound import retry_after
from app.core.providers import Provider, Providers, ProvidersError, Route
from app.graders import judge_prompt
from app.graders.case import Case
from app.graders.json_text import NotJson, read_json
from app.graders.judgements import FOLDER, Judgements, Reply, digest
from app.graders.kinds import Judge, ScoreModel
from app.graders.pace import Pace, pace_of, seats_of
from app.graders.result import Grade, GradeErrors, Tokens, graders_fault, infrastructure_fault

MOST_WAIT = 60.0
# What the request itself did wrong: asking again can't help, and the next answer may do better.
REQUEST_FAULTS = (400, 413, 422)
PASSING_FAULTS = (408, 409, 429)

_LOCAL = ("127.0.0.1", "localhost", "::1")
_CODE_BLOCK = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


class _Failed(Exception):
    """The judge gave no reply; the grade says why."""

    def __init__(self, grade: Grade, tokens: Tokens | None = None) -> None:
        super().__init__(grade.message)
        self.grade = grade
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class _Line:
    """The way to one provider: connections of one's own, and the seats and the pace of this process."""

    provider: Provider
    client: httpx.Client
    seats: threading.BoundedSemaphore
    pace: Pace


@dataclass(slots=True)
class Judges:
    """Every judge model there is. Safe to use from many threads; `close` it when done."""

    providers: Providers
    kept: Judgements
    # Models of this house, which judge under their own names.
    served: Mapping[str, Served] = field(default_factory=dict)
    _lines: dict[str, _Line] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, data: Path, *, served: Mapping[str, Served] | None = None) -> Self:
        """Return the judges a data folder names, and those that are served here. Raises: ProvidersError."""
        return cls(Providers.read(data), Judgements(data / FOLDER), served or {})

    def grade(self, grader: Judge, case: Case) -> Grade:
        """Let the judge look at one answer. Raises: UnresolvedVariable."""
        route, own = self._route(grader.model)
        if route is None:
            message = f"No provider in providers.toml answers for the model '{grader.model}'."
            return _server_fault(message, again=True)
        request = _request(route, grader, judge_prompt.messages(grader, case))
        key = digest(route.provider.url, request)
        with self.kept.asking(key):
            reply = self.kept.get(key)
            if reply is not None:
                return replace(_read(grader, reply), sampled_model=route.model)
            try:
                reply = self._ask(route.provider, request, own)
            except _Failed as failure:
                paid = {} if failure.tokens is None else {route.model: failure.tokens}
                return replace(failure.grade, usage=paid, sampled_model=route.model)
            grade = _read(grader, reply)
            if grade.fault == "none":
                self.kept.put(key, reply)
        return replace(grade, usage={route.model: reply.usage}, sampled_model=route.model)

    def close(self) -> None:
        """Close every connection."""
        for line in self._lines.values():
            line.client.close()

    def _route(self, model: str) -> tuple[Route | None, Served | None]:
        """Return who judges as `model`: the provider that names it, a model of this house, any provider."""
        served = self.served.get(model)
        if served is None or self.providers.named(model) is not None:
            return self.providers.route(model), None
        return Route(_as_provider(served), served.name), served

    def _line(self, provider: Provider, own: Served | None) -> _Line:
        # An engine may be called what a provider is called.
        name = provider.name if own is None else f"{provider.name} of this house"
        with self._lock:
            line = self._lines.get(name)
            if line is None:
                client = _client(provider) if own is None else own.blocking_client()
                seats = seats_of(provider.url, provider.concurrency)
                line = _Line(provider, client, seats, pace_of(provider.url, provider.requests_per_minute))
                self._lines[name] = line
            return line

    def _ask(self, provider: Provider, request: Mapping[str, Any], own: Served | None) -> Reply:
        """Return the judge's reply, trying again while that can help. Raises: _Failed."""
        line = self._line(provider, own)
        for attempt in range(provider.attempts):
            wait = provider.backoff_seconds * 2**attempt * random.uniform(0.75, 1.25)
            try:
                if own is not None:
                    own.ready()
                response = _post(line, request, own)
            except (EngineRefused, ProvidersError) as problem:
                reason = str(problem)
            except httpx.HTTPError as problem:
                reason = f"'{provider.name}' gave no answer: {type(problem).__name__} {problem}".strip()
            else:
                if response.status_code == 200 and (reply := _reply(response)) is not None:
                    return reply
                reason = _status_reason(provider, response)
                if 400 <= response.status_code < 500 and response.status_code not in PASSING_FAULTS:
                    raise _Failed(_server_fault(reason, again=response.status_code not in REQUEST_FAULTS))
                asked = retry_after(response.headers.get("retry-after", "").encode(), time.time())
                wait = max(wait, asked or 0.0)
            if attempt + 1 < provider.attempts:
                time.sleep(min(wait, MOST_WAIT))
        raise _Failed(_server_fault(f"{reason} ({provider.attempts} tries)", again=True))


def _client(provider: Provider) -> httpx.Client:
    # A proxy of the environment is for the world outside.
    outside = urlsplit(provider.base_url).hostname not in _LOCAL
    return httpx.Client(timeout=provider.timeout_seconds, trust_env=outside)


def _as_provider(served: Served) -> Provider:
    """Return a model of this house as judges are asked; its engine may be starting, so it has more tries."""
    engine = served.engine
    return Provider(
        name=engine.name,
        base_url=engine.base_url,
        key_variable=engine.key_variable,
        models={served.model: served.name},
        attempts=6,
    )


def _post(line: _Line, request: Mapping[str, Any], own: Served | None) -> httpx.Response:
    try:
        key = line.provider.key()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        if own is not None:
            headers = own.headers()
    except ProvidersError as problem:
        raise _Failed(_server_fault(str(problem), again=True)) from None
    line.pace.wait()
    with line.seats:
        return line.client.post(line.provider.url, json=request, headers=headers)


def _request(route: Route, grader: Judge, messages: list[dict[str, Any]]) -> dict[str, Any]:
    provider, sampling = route.provider, grader.sampling_params
    request: dict[str, Any] = {"model": route.model, "messages": messages}
    if provider.structured_output == "json_schema":
        schema = {"name": "grade", "strict": True, "schema": judge_prompt.answer_schema(grader)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif provider.structured_output == "json_object":
        request["response_format"] = {"type": "json_object"}
    if sampling is not None:
        given = sampling.model_dump(exclude_none=True)
        limit = given.pop("max_completions_tokens", None)
        request |= given | ({} if limit is None else {provider.token_limit_key: limit})
    return request


def _reply(response: httpx.Response) -> Reply | None:
    """Return what a successful response says, None for one that is no chat completion. Raises: _Failed."""
    try:
        document = response.json()
        choice = document["choices"][0]
        message = choice["message"]
        usage = _usage(document.get("usage"))
        refusal, content, ending = message.get("refusal"), message.get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if refusal or ending == "content_filter":
        told = f"The judge refused: {refusal}" if refusal else "The judge's answer was filtered."
        raise _Failed(graders_fault(told, GradeErrors(model_grader_refusal_error=True)), usage)
    if ending == "length":
        cut = "The judge's answer was cut off by its token limit (sampling_params.max_completions_tokens)."
        raise _Failed(_parse_fault(cut), usage)
    return Reply(content if isinstance(content, str) else "", usage)


def _usage(given: object) -> Tokens:
    counts: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    details = counts.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    found = {name: counts.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    found["cached_tokens"] = cached
    return {name: count if isinstance(count, int) else 0 for name, count in found.items()}


def _read(grader: Judge, reply: Reply) -> Grade:
    """Return the grade that a reply means; a number outside the range is brought to its nearer end."""
    block = _CODE_BLOCK.fullmatch(reply.content)
    try:
        document = read_json(block[1] if block else reply.content)
    except NotJson as error:
        return _parse_fault(f"The judge's answer cannot be read: {error}. It said: {reply.content[:500]}")
    result = document.get("result") if isinstance(document, dict) else None
    if isinstance(grader, ScoreModel):
        if isinstance(result, bool) or not isinstance(result, int | float):
            return _parse_fault(f"The judge gave no number as `result`. It said: {reply.content[:500]}")
        low, high = judge_prompt.bounds(grader)
        return Grade(reward=min(max(float(result), low), high))
    if result not in grader.labels:
        return _parse_fault(f"The judge gave none of the labels as `result`. It said: {reply.content[:500]}")
    return Grade(reward=float(result in grader.passing_labels))


def _parse_fault(message: str) -> Grade:
    return graders_fault(message, GradeErrors(model_grader_parse_error=True))


def _server_fault(message: str, *, again: bool) -> Grade:
    """Return a missing grade; `again` says that the same request may do better another time."""
    made = infrastructure_fault if again else graders_fault
    grade = made(message, GradeErrors(model_grader_server_error=True))
    return replace(grade, errors=replace(grade.errors, model_grader_server_error_details=grade.message))


def _status_reason(provider: Provider, response: httpx.Response) -> str:
    text = " ".join(response.text[:2000].split())[:500]
    if response.status_code == 200:
        return f"'{provider.name}' sent no chat completion: {text}"
    return f"'{provider.name}' answered with status {response.status_code}: {text}"

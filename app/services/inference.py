"""Asking a model that is served here: who may, which engine answers, and what its silence or refusal means.

Opens no transaction while an engine is asked. What a request and an answer look like stands in `chat_request`
and `chat_answer`. Called by completions, responses, the graders' means and both faces.

Source: reliability.md (503 and retries); OpenAI's error envelope.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

import httpx
from sqlalchemy.orm import Session

from app.core import engines
from app.core.context import Context
from app.core.engines import EngineRefused, Served
from app.core.errors import AppError, InvalidRequest, NotFound, RateLimited, Unavailable
from app.core.outbound import retry_after
from app.core.providers import Providers, ProvidersError
from app.core.settings import Settings
from app.core.storage import Storage
from app.core.tables import Model
from app.graders.kinds import LabelModel, ScoreModel
from app.graders.spec import Grader, leaves
from app.services import models

# How long a client should let pass before it asks a process that is starting again.
RETRY_SECONDS = 5
# What the request itself did wrong; anything else of the engine's refusals is between it and us.
REQUEST_FAULTS = (400, 413, 422)


def served(context: Context, *, project_id: str, name: str) -> Served:
    """Return who answers for a model, once the engine is ready to. No transaction may be open.

    Raises: NotFound `model_not_found`, Unavailable.
    """
    with context.db.reading() as session:
        found = locate(session, settings=context.settings, project_id=project_id, name=name)
    try:
        found.ready()
    except EngineRefused as problem:
        raise Unavailable(f"{problem}.", retry_after=RETRY_SECONDS) from None
    except httpx.HTTPError as problem:
        raise _silent(found, problem) from problem
    except ProvidersError as problem:
        raise Unavailable(str(problem), code="engine_key_missing") from None
    return found


def locate(session: Session, *, settings: Settings, project_id: str, name: str) -> Served:
    """Return who would answer for a model the project may name, by an alias too.

    Raises: NotFound `model_not_found`, Unavailable for a stopped model or a broken providers.toml.
    """
    wanted = settings.model_aliases.get(name, name)
    model = models.get_model(session, project_id=project_id, model_id=wanted)
    if model.stopped_at is not None:
        cure = (
            f"choose *Load* on its page in the dashboard, or POST to /v1/models/{model.id}/load with a key "
            "that administers the project."
            if model.project_id == project_id
            else "the project that shares it has to load it."
        )
        raise Unavailable(
            f"The model '{model.id}' was stopped by a person and answers nobody until it is loaded again: "
            f"{cure}",
            code="model_stopped",
        )
    return engine_of(model, settings=settings, project_id=project_id)


def engine_of(model: Model, *, settings: Settings, project_id: str) -> Served:
    """Return who answers for a model that is not stopped. Raises: Unavailable for a broken providers.toml."""
    try:
        providers = Providers.read(settings.root)
    except ProvidersError as problem:
        raise Unavailable(str(problem), code="providers_unreadable") from None
    storage = Storage(settings.root)
    adapter = storage.path(model.uri) if model.kind != "base" and model.uri is not None else None
    return engines.serve(
        model.id,
        base_model=model.base_model,
        adapter=adapter,
        settings=settings,
        providers=providers,
        project_id=project_id,
    )


def judges(session: Session, *, settings: Settings, project_id: str, grader: Grader) -> dict[str, Served]:
    """Return who answers for those of a grader's judges that are models of this house, by their names.

    Raises: Unavailable for a stopped one or a broken providers.toml.
    """
    found: dict[str, Served] = {}
    for leaf in leaves(grader).values():
        if isinstance(leaf, ScoreModel | LabelModel):
            # Whoever is no model here may stand in providers.toml.
            with suppress(NotFound):
                found[leaf.model] = locate(session, settings=settings, project_id=project_id, name=leaf.model)
    return found


def own_judges(context: Context, *, project_id: str, grader: Grader) -> dict[str, Served]:
    """Return what `judges` finds, in a reading of its own."""
    with context.db.reading() as session:
        return judges(session, settings=context.settings, project_id=project_id, grader=grader)


async def ask(served: Served, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the engine answers. Raises: Unavailable, RateLimited, InvalidRequest."""
    try:
        async with served.client() as client:
            answer = await client.post(served.engine.url, json=body, headers=served.headers())
    except httpx.HTTPError as problem:
        raise _silent(served, problem) from problem
    if answer.status_code != 200:
        raise _refusal(served, answer)
    said = _json(answer.content)
    if not isinstance(said, Mapping):
        raise garbled(served, "it sent no JSON object")
    return said


async def stream(served: Served, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any]]:
    """Yield what the engine answers, piece by piece; closing the iterator ends the engine's work.

    Raises: Unavailable, RateLimited, InvalidRequest, also in the middle.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with (
            served.client() as client,
            client.stream("POST", served.engine.url, json=asked, headers=served.headers()) as answer,
        ):
            if answer.status_code != 200:
                await answer.aread()
                raise _refusal(served, answer)
            async for line in answer.aiter_lines():
                field, _, text = line.partition(":")
                if field != "data":
                    continue
                if text.strip() == "[DONE]":
                    return
                said = _json(text.encode())
                if not isinstance(said, Mapping):
                    raise garbled(served, "it sent a piece that is no JSON object")
                if said.get("error"):
                    raise _said_error(served, said)
                yield said
    except httpx.HTTPError as problem:
        raise _silent(served, problem) from problem
    raise garbled(served, "its answer broke off")


def garbled(served: Served, why: str) -> Unavailable:
    """Return the error of an answer that can't be read."""
    return Unavailable(f"{_who(served)} gave an answer that can't be read: {why}.", retry_after=RETRY_SECONDS)


def _silent(served: Served, problem: httpx.HTTPError) -> Unavailable:
    if isinstance(problem, httpx.ReadTimeout):
        why = f"said nothing for {served.engine.timeout_seconds:g} seconds"
    elif isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout):
        why = "can't be reached at the moment"
    else:
        why = "broke off"
    cure = "It is started again by itself; `make status` tells more" if served.is_ours else "Please try again"
    return Unavailable(
        f"{_who(served)}, which answers for '{served.model}', {why}. {cure}.", retry_after=RETRY_SECONDS
    )


def _refusal(served: Served, answer: httpx.Response) -> AppError:
    """Return what an engine's refusal means to the caller: theirs to mend, a matter of time, or ours."""
    said = _json(answer.content)
    error = said.get("error", said) if isinstance(said, Mapping) else {}
    error = error if isinstance(error, Mapping) else {"message": error}
    message = str(error.get("message") or answer.text[:500] or f"status {answer.status_code}")[:2000]
    param, code = (
        word if isinstance(word, str) else None for word in (error.get("param"), error.get("code"))
    )
    if answer.status_code in REQUEST_FAULTS:
        return InvalidRequest(message, param=param, code=code or "invalid_value")
    wait = retry_after(answer.headers.get("retry-after", "").encode(), 0.0)
    seconds = RETRY_SECONDS if wait is None else max(1, round(wait))
    if answer.status_code == 429:
        return RateLimited(message, headers={"retry-after": str(seconds)})
    message = f"{_who(served)} can't answer for '{served.model}': {message}"
    if served.is_ours and code is not None and wait is None:
        # Our own process says when to come back wherever that is of use.
        return Unavailable(message, code=code)
    return Unavailable(message, retry_after=seconds)


def _said_error(served: Served, said: Mapping[str, Any]) -> Unavailable:
    error = said["error"]
    message = error.get("message") if isinstance(error, Mapping) else error
    return Unavailable(f"{_who(served)} failed: {str(message)[:2000]}", retry_after=RETRY_SECONDS)


def _who(served: Served) -> str:
    return "The inference process" if served.is_ours else f"The engine '{served.engine.name}'"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None

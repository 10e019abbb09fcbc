"""Whether a model answers at the moment (loaded, ready to load, stopped, down), and a person's say in it.

Asks the inference process, so no transaction may be open. Answering itself is `inference.py`'s. Called by
both faces.
"""

import logging
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from app.core.context import Context
from app.core.engines import LOAD_SECONDS, Served
from app.core.errors import Unavailable
from app.core.providers import ProvidersError
from app.services import inference, models

# A page waits for it.
HEALTH_SECONDS = 2.0

_DOWN = "The inference process does not answer. On the server, make status tells more."

logger = logging.getLogger(__name__)

State = Literal["loaded", "ready", "elsewhere", "stopped", "down"]


@dataclass(frozen=True, slots=True)
class Serving:
    """A model's state with the sentence that tells it."""

    state: State
    words: str


def serving(context: Context, *, project_id: str, model_id: str) -> Serving:
    """Return whether a model answers. Raises: NotFound."""
    try:
        served = _located(context, project_id, model_id)
    except Unavailable as problem:
        return Serving("stopped" if problem.code == "model_stopped" else "down", problem.message)
    if not _is_up(served):
        return Serving("down", _DOWN)
    if not served.is_ours:
        return Serving("elsewhere", f"Answered by the engine {served.engine.name} of providers.toml.")
    try:
        bases = _health(served)["models"]
        loaded = {base["id"] for base in bases} | {name for base in bases for name in base["adapters"]}
    except (httpx.HTTPError, ProvidersError, ValueError, KeyError, TypeError):
        return Serving("down", _DOWN)
    if served.model in loaded:
        return Serving("loaded", "In memory: it answers at once.")
    return Serving("ready", "Not in memory yet: the first request loads it.")


def load(context: Context, *, project_id: str, model_id: str) -> None:
    """Let a stopped model answer again. Raises: NotFound, Forbidden as `stop` does."""
    with context.db.transaction() as session:
        models.load_model(session, project_id=project_id, model_id=model_id)


def warm(context: Context, *, project_id: str, model_id: str) -> None:
    """Have our own process load a model before somebody asks it. Whoever asks hears why it can't be."""
    with suppress(Unavailable):
        _tell(_located(context, project_id, model_id), "models/load", model_id)


def stop(context: Context, *, project_id: str, model_id: str) -> None:
    """Let a model answer nobody until it is loaded again, and have our own process give its memory back.

    Raises: NotFound; Forbidden for a base model or one that another project shares.
    """
    with context.db.transaction() as session:
        model = models.stop_model(session, project_id=project_id, model_id=model_id)
        served = None
        with suppress(Unavailable):  # nobody answers for it
            served = inference.engine_of(model, settings=context.settings, project_id=project_id)
    if served is not None:
        _tell(served, "models/unload", model_id)


def _located(context: Context, project_id: str, model_id: str) -> Served:
    with context.db.reading() as session:
        return inference.locate(session, settings=context.settings, project_id=project_id, name=model_id)


def _is_up(served: Served) -> bool:
    """Say whether somebody listens at its socket, before a client that would leave its own end open asks."""
    if served.socket is None:
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(HEALTH_SECONDS)
        return probe.connect_ex(str(served.socket)) == 0


def _health(served: Served) -> dict[str, Any]:
    with served.blocking_client() as client:
        answer = client.get(f"{_root(served)}/health", headers=served.headers(), timeout=HEALTH_SECONDS)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told


def _root(served: Served) -> str:
    return served.engine.base_url.rstrip("/").removesuffix("/v1")


def _tell(served: Served, path: str, model_id: str) -> None:
    """Tell our own process about a model. One that is down, or is none of ours, needs not hear of it."""
    if not served.is_ours or not _is_up(served):
        return
    try:
        with served.blocking_client() as client:
            client.post(
                f"{_root(served)}/v1/{path}",
                json={"model": model_id},
                headers=served.headers(),
                timeout=LOAD_SECONDS,
            ).raise_for_status()
    except (httpx.HTTPError, ProvidersError) as problem:
        logger.warning("%s of %s: %s", path, model_id, problem)

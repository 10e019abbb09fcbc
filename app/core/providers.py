"""`providers.toml` in DATA: which OpenAI-compatible services judge, and which answer for models served here.

The keys themselves stand in environment variables it names. The addresses are the operator's own, so they are
trusted (unlike those in `outbound`). How an engine is reached stands in `engines`.

    [[provider]]
    name = "local"
    base_url = "http://127.0.0.1:8001/v1"
    key_variable = "LOCAL_KEY"            # optional
    [provider.models]                     # the name a grader uses = the name the service knows
    "gpt-4.1-mini-2025-04-14" = "qwen3-32b"
    "*" = "qwen3-32b"                     # optional: every other name that is no model served here

    [[engine]]                            # instead of the service's own inference process
    name = "vllm"
    base_url = "http://127.0.0.1:8002/v1"
    adapters = true                       # it loads LoRA adapters while it runs, as vLLM can
    [engine.models]                       # the base model here = the name the engine knows
    "qwen3-4b" = "Qwen/Qwen3-4B"
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FILE = "providers.toml"
ANY_MODEL = "*"


class ProvidersError(Exception):
    """The file can't be read as it stands; the message names the place."""


class Service(BaseModel):
    """Where a service is, its key, and its names for models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64)
    base_url: str = Field(pattern=r"^https?://[^\s?#]+$")
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    models: dict[str, str] = Field(min_length=1)

    @property
    def url(self) -> str:
        """Where chat completions are asked for."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def has_key(self, environment: Mapping[str, str] = os.environ) -> bool:
        """Say whether the key is at hand, or none is wanted."""
        try:
            self.key(environment)
        except ProvidersError:
            return False
        return True

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """Return the service's key, None where it wants none. Raises: ProvidersError when it is not set."""
        if self.key_variable is None:
            return None
        key = environment.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            raise ProvidersError(
                f"The variable {self.key_variable}, which should hold the key of '{self.name}', is not set."
            )
        return key


class Provider(Service):
    """A judging service and how hard it may be asked. Units: seconds; requests a minute, 0 is no limit."""

    # How the service is told the shape of its answer; old servers know only some of these.
    structured_output: Literal["json_schema", "json_object", "none"] = "json_schema"
    token_limit_key: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    concurrency: int = Field(default=8, ge=1, le=256)
    requests_per_minute: int = Field(default=0, ge=0)
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    attempts: int = Field(default=4, ge=1, le=10)
    backoff_seconds: float = Field(default=0.5, ge=0, le=60)


class Engine(Service):
    """A service that answers for base models of this house. Units: seconds between two bytes of an answer."""

    # May be told to load a tuned model's adapter; else tuned models stay with our own inference process.
    adapters: bool = False
    # Where the engine's machine has this service's data folder, when not under the same path.
    data: str | None = None
    timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers for a model name, and what it is called there."""

    provider: Provider
    model: str


@dataclass(frozen=True, slots=True)
class Providers:
    """Every provider and every engine, in the order of the file."""

    all: tuple[Provider, ...] = ()
    engines: tuple[Engine, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Providers":
        """Return what the data folder's file says; none when there is no file. Raises: ProvidersError."""
        path = folder / FILE
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return cls()
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise ProvidersError(f"{path}: {problem}") from None
        if set(document) - {"provider", "engine"}:
            raise ProvidersError(
                f"{path}: write each provider under [[provider]], each engine under [[engine]]."
            )
        return cls(_checked(path, document, Provider), _checked(path, document, Engine))

    def named(self, model: str) -> Route | None:
        """Return the provider that names this very model."""
        return next((Route(one, one.models[model]) for one in self.all if model in one.models), None)

    def route(self, model: str) -> Route | None:
        """Return who judges as `model`: whoever names it, else the first that takes every name."""
        return self.named(model) or self.named(ANY_MODEL)

    def engine(self, base_model: str, *, adapter: bool) -> Engine | None:
        """Return the engine that answers for a base model, or for an adapter on it; None is our own."""
        able = (one for one in self.engines if base_model in one.models and (one.adapters or not adapter))
        return next(able, None)

    @property
    def models(self) -> tuple[str, ...]:
        """Return the model names graders may use, without the catch-all."""
        return tuple(
            dict.fromkeys(name for provider in self.all for name in provider.models if name != ANY_MODEL)
        )


S = TypeVar("S", bound=Service)


def _checked(path: Path, document: Mapping[str, object], kind: type[S]) -> tuple[S, ...]:
    word = kind.__name__.lower()
    entries = document.get(word, [])
    if not isinstance(entries, list):
        raise ProvidersError(f"{path}: write each {word} under [[{word}]].")
    found: list[S] = []
    for index, entry in enumerate(entries):
        try:
            service = kind.model_validate(entry)
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
            place = ".".join(str(step) for step in first["loc"])
            raise ProvidersError(f"{path}: {word} {index + 1}, {place}: {first['msg']}.") from None
        if service.name in {other.name for other in found}:
            raise ProvidersError(f"{path}: two {word}s are called '{service.name}'.")
        found.append(service)
    return tuple(found)

"""How a model that is served here is reached: our own inference process, or an engine of `providers.toml`.

Every engine speaks OpenAI's chat completions over HTTP, ours through a socket in DATA. Who may use which
model is `services/inference.py`'s question. Called by it and by the judges.

Source: vLLM's `POST /v1/load_lora_adapter`.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from app.core.providers import Engine, Providers
from app.core.settings import Settings

OURS = "tunesmith"
CONNECT_SECONDS = 5.0
LOAD_SECONDS = 120.0

_LOCAL = ("127.0.0.1", "localhost", "::1")


class EngineRefused(Exception):
    """The engine answers and will not serve this model; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model with the engine that answers for it. `name` is the engine's word for it."""

    model: str
    engine: Engine
    name: str
    socket: Path | None = None
    # What the engine must load first, by the path it knows.
    adapter: str | None = None
    # Who asks: our own process is fair between projects.
    project_id: str = ""

    @property
    def is_ours(self) -> bool:
        """True when our own inference process answers."""
        return self.engine.name == OURS

    def headers(self) -> dict[str, str]:
        """Return what the engine wants to see. Raises: ProvidersError when its key is not set."""
        key = self.engine.key()
        told = {} if key is None else {"authorization": f"Bearer {key}"}
        return told | ({"openai-project": self.project_id} if self.is_ours else {})

    def client(self) -> httpx.AsyncClient:
        """Return a new connection for an event loop; closing it ends what the engine does for it."""
        certificates, socket = _certificates(), self.socket
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=certificates) if socket else None
        return httpx.AsyncClient(
            transport=transport, timeout=self._timeout(), trust_env=self._outside(), verify=certificates
        )

    def blocking_client(self) -> httpx.Client:
        """Return a new connection for a thread."""
        certificates, socket = _certificates(), self.socket
        transport = httpx.HTTPTransport(uds=str(socket), verify=certificates) if socket else None
        return httpx.Client(
            transport=transport, timeout=self._timeout(), trust_env=self._outside(), verify=certificates
        )

    def ready(self) -> None:
        """See that the engine runs, if it is ours, and that another has loaded the adapter it needs.

        Raises: EngineRefused, httpx.HTTPError, ProvidersError.
        """
        if self.socket is not None and not self.socket.exists():
            raise EngineRefused(
                f"The inference process, which answers for '{self.model}', does not run at the moment; "
                "`make status` tells more"
            )
        if self.adapter is None:
            return
        asked = {"lora_name": self.name, "lora_path": self.adapter}
        with self.blocking_client() as client:
            answer = client.post(
                f"{self.engine.base_url.rstrip('/')}/load_lora_adapter",
                json=asked,
                headers=self.headers(),
                timeout=LOAD_SECONDS,
            )
        # Nothing is remembered here: an engine that was started anew has forgotten its adapters.
        if answer.status_code != 200 and "already" not in answer.text:
            said = " ".join(answer.text[:2000].split())[:300]
            raise EngineRefused(
                f"'{self.engine.name}' did not load the adapter (status {answer.status_code}): {said}"
            )

    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.engine.timeout_seconds, connect=CONNECT_SECONDS)

    def _outside(self) -> bool:
        # A proxy of the environment is for the world outside.
        return self.socket is None and urlsplit(self.engine.base_url).hostname not in _LOCAL


def serve(
    model: str,
    *,
    base_model: str,
    adapter: Path | None,
    settings: Settings,
    providers: Providers,
    project_id: str = "",
) -> Served:
    """Return who answers for a model: the engine that names its base model, else our own process."""
    engine = providers.engine(base_model, adapter=adapter is not None)
    if engine is None:
        elsewhere = _nearest(settings.inference_url.split(","), model)
        ours = _ours(elsewhere, "TUNESMITH_INFERENCE_KEY" if settings.inference_key else None)
        socket = None if elsewhere else settings.inference_socket
        return Served(model, ours, model, socket=socket, project_id=project_id)
    if adapter is None:
        return Served(model, engine, engine.models[base_model])
    place = adapter
    if engine.data is not None:
        place = Path(engine.data) / adapter.relative_to(settings.root)
    # Its own name for these very weights: under a name it has had before, vLLM serves stale caches.
    name = f"{OURS}-{sha256(f'{model} {adapter.name}'.encode()).hexdigest()[:24]}"
    return Served(model, engine, name, adapter=str(place))


def _nearest(urls: Sequence[str], model: str) -> str:
    """Return which of several inference processes answers for a model.

    Always the same, which knows what it read for the model; one more process takes models over from the
    others and moves none between those.

    Source: highest random weight hashing, Thaler and Ravishankar 1998.
    """
    return max(urls, key=lambda url: sha256(f"{url} {model}".encode()).digest())


@cache
def _ours(url: str, key_variable: str | None) -> Engine:
    return Engine(
        name=OURS,
        base_url=url or "http://inference/v1",
        key_variable=key_variable,
        models={"*": "*"},
        adapters=True,
    )


@cache
def _certificates() -> ssl.SSLContext:
    # Reading the machine's certificates takes longer than a short answer.
    return httpx.create_ssl_context()

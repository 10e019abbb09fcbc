"""A whole inference process in a thread, on its socket: tiny models, two tuned ones, a real database."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from app.core import clock, migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Model
from tests.tiny_model import CHAT_TEMPLATE, build_tiny_model
from tests.worker.engine.conftest import settings as training
from worker.engine.policy import Policy
from worker.serving.__main__ import listen
from worker.serving.api import create_app
from worker.serving.house import House, Limits

TUNED = ("ft:tiny:personal::aaaaaaaa", "ft:tiny:personal::bbbbbbbb")
THINKER = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    + CHAT_TEMPLATE
    + "{% if enable_thinking is not false and add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
)


@dataclass
class Served:
    """An inference process that runs."""

    context: Context
    house: House
    client: httpx.Client

    def post(self, path: str, body: Any) -> httpx.Response:
        """Ask for anything."""
        return self.client.post(path, json=body)

    def chat(self, text: str = "a", model: str = "tiny", **body: Any) -> dict[str, Any]:
        """Return a completion, which has to come."""
        asked = {"model": model, "messages": [{"role": "user", "content": text}], **body}
        answer = self.post("/v1/chat/completions", asked)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def text(self, *args: Any, **body: Any) -> str:
        """Return a completion's text."""
        content: str = self.chat(*args, **body)["choices"][0]["message"]["content"]
        return content

    def policy(self, model: str = "tiny", adapter: str | None = None) -> Policy:
        """Return a policy of our own, for what is served to be held against."""
        policy = Policy.load(self.context.settings.models / model, config=training())
        if adapter is not None:
            policy.load_adapter(self.context.storage.path(f"jobs/{adapter.rpartition(':')[2]}"))
        return policy


def disturb(policy: Policy, seed: int) -> None:
    """Give an adapter weights of its own that change the answers."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.adapter.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))


def add_model(context: Context, name: str, base: str, uri: str | None) -> None:
    """Make a model known."""
    kind = "base" if uri is None else "tuned"
    with context.db.transaction() as session:
        session.add(Model(id=name, kind=kind, base_model=base, uri=uri, details={}, created_at=clock.now()))


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The process, loaded with nothing yet."""
    with Serving(tmp_path_factory.mktemp("serving")) as found:
        yield found


class Serving:
    """Runs an inference process for a `with` block."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.settings = Settings(data=folder / "data", models=folder / "models")
        values = {"memory": 1 << 30, "waiting": 64, "rows": 8, "idle_seconds": 600.0} | limits
        self.house = House(Limits(**values), threads=lambda: 1)

    def __enter__(self) -> Served:
        settings = self.settings
        settings.inference_socket.parent.mkdir(parents=True)
        migrate.upgrade(settings)
        context = Context.build(settings)
        build_tiny_model(settings.models / "tiny")
        add_model(context, "tiny", "tiny", None)
        build_tiny_model(settings.models / "thinker")
        (settings.models / "thinker" / "chat_template.jinja").write_text(THINKER)
        add_model(context, "thinker", "thinker", None)
        policy = Policy.load(settings.models / "tiny", config=training())
        for seed, name in enumerate(TUNED):
            policy.reset_adapter(7)
            disturb(policy, seed)
            uri = f"jobs/{name.rpartition(':')[2]}"
            policy.save_adapter(context.storage.path(uri))
            add_model(context, name, "tiny", uri)
        config = uvicorn.Config(create_app(context, self.house), log_config=None, timeout_graceful_shutdown=2)
        self.server = uvicorn.Server(config)
        listener = listen(settings)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        transport = httpx.HTTPTransport(uds=str(settings.inference_socket))
        self.client = httpx.Client(transport=transport, base_url="http://inference", timeout=60)
        end = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.02)
        self.context = context
        return Served(context, self.house, self.client)

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(30)
        self.context.db.dispose()

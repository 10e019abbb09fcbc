"""vLLM beside our own engine, and in its place: a real server of the environment `.vllm`, on one free port.

`drive` has the web process send its requests there, as `providers.toml` says, and holds every answer against
our own inference process.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from app.core.context import Context
from app.core.tables import Model
from app.main import create_app
from app.services import api_keys, projects
from tests.bench.serve_process import ADAPTERS, MODEL, Inference, peak, store

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".vllm" / "bin" / "python"
NAME = "base"
START_SECONDS = 600
TOKENS = 24
# Of the likeliest first tokens, between two engines that compute in another order.
LOGPROBS = 0.01
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Vllm:
    """The server, for a `with` block; it takes our adapters while it runs."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.base_url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self) -> "Vllm":
        environment = {
            **os.environ,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", store() / MODEL]
        command += [
            "--served-model-name",
            NAME,
            "--host",
            "127.0.0.1",
            "--port",
            self.base_url.rpartition(":")[2],
        ]
        command += ["--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "32"]
        command += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "8"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(map(str, command)),
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._process.pid

    def client(self) -> httpx.AsyncClient:
        """Return a client of the server."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.base_url, timeout=600, limits=limits, trust_env=False)

    def peak(self) -> float:
        """Return the most memory its processes ever held, in MB."""
        session = subprocess.run(
            ("ps", "-o", "pid=", "-s", str(self._process.pid)), check=True, capture_output=True, text=True
        )
        return peak(map(int, session.stdout.split()))

    def kill(self) -> None:
        """End the server and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 15)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, 9)
                self._process.wait(30)

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            try:
                if httpx.get(f"{self.base_url}/health", trust_env=False, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(1)
        self.kill()
        raise RuntimeError(f"vLLM did not start:\n{self._log.read_text(errors='replace')[-4000:]}")


def drive(inference: Inference, vllm: Vllm) -> list[str]:
    """Have vLLM answer in our process's place, print what was seen, and return what is wrong."""
    problems: list[str] = []
    names = (MODEL, *ADAPTERS)
    context = inference.context
    own = {name: _answer(inference, name) for name in names}
    (context.settings.root / "providers.toml").write_text(
        f'[[engine]]\nname = "vllm"\nbase_url = "{vllm.base_url}/v1"\nadapters = true\n'
        f'[engine.models]\n"{MODEL}" = "{NAME}"\n'
    )
    with _web(context) as client:
        theirs = {name: _asked(client, name) for name in names}
        gaps = {name: _gap(own[name], theirs[name]) for name in names}
        problems += [f"{name}: log-probs differ by {gap:.4f}" for name, gap in gaps.items() if gap > LOGPROBS]
        texts = sum(own[name]["text"] == theirs[name]["text"] for name in names)
        if "".join(_streamed(client, ADAPTERS[0])) != theirs[ADAPTERS[0]]["text"]:
            problems.append("a streamed answer is another")
        # Other weights under a name that was served before.
        with context.db.transaction() as session:
            row = session.get_one(Model, ADAPTERS[0])
            kept, row.uri = row.uri, session.get_one(Model, ADAPTERS[1]).uri
        if (stale := _gap(own[ADAPTERS[1]], _asked(client, ADAPTERS[0]))) > LOGPROBS:
            problems.append(f"weights that were replaced still answer ({stale:.4f})")
        with context.db.transaction() as session:
            session.get_one(Model, ADAPTERS[0]).uri = kept
        made = client.responses.create(model=ADAPTERS[2], input="Who are you?", max_output_tokens=16)
        if made.status not in ("completed", "incomplete") or made.usage is None:
            problems.append("no response was made")
        vllm.kill()
        try:
            _asked(client, ADAPTERS[0])
            problems.append("an engine that is gone still answers")
        except openai.InternalServerError as gone:
            if gone.status_code != 503 or "retry-after" not in gone.response.headers:
                problems.append(f"an engine that is gone: {gone}")
        client.models.list()
    (context.settings.root / "providers.toml").unlink()
    worst = max(gaps.values())
    print(
        f"VLLM models={len(names)} texts_equal={texts} worst_logprob_gap={worst:.5f} problems={problems}",
        flush=True,
    )
    return problems


@contextmanager
def _web(context: Context) -> Iterator[openai.OpenAI]:
    """Run the web process's application in a thread, with a key for the official client."""
    with context.db.transaction() as session:
        project = projects.default_project(session)
        _, key = api_keys.create_key(session, project_id=project.id, name="bench")
    server = uvicorn.Server(uvicorn.Config(create_app(context.settings), port=0, log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=120) as client:
        yield client
    server.should_exit = True
    thread.join(30)


_BODY: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "logprobs": True, "top_logprobs": 5}


def _answer(inference: Inference, model: str) -> dict[str, Any]:
    with inference.blocking_client() as client:
        answer = client.post("/v1/chat/completions", json={"model": model, "messages": QUESTION, **_BODY})
        answer.raise_for_status()
        return _told(answer.json())


def _asked(client: openai.OpenAI, model: str) -> dict[str, Any]:
    made = client.chat.completions.create(model=model, messages=QUESTION, **_BODY)  # type: ignore[arg-type]
    return _told(json.loads(made.to_json()))


def _streamed(client: openai.OpenAI, model: str) -> Iterator[str]:
    for chunk in client.chat.completions.create(
        model=model,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
    ):
        yield chunk.choices[0].delta.content or ""


def _told(completion: dict[str, Any]) -> dict[str, Any]:
    choice = completion["choices"][0]
    likeliest = choice["logprobs"]["content"][0]["top_logprobs"]
    return {
        "text": choice["message"]["content"],
        "first": {tuple(one["bytes"] or ()): one["logprob"] for one in likeliest},
    }


def _gap(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the widest gap of the first token's log-probs; without a common token it is infinite."""
    common = ours["first"].keys() & theirs["first"].keys()
    return max((abs(ours["first"][one] - theirs["first"][one]) for one in common), default=float("inf"))

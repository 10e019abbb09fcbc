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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from app.core.context import Context
from app.core.tables import Model
from app.main import create_app
from app.services import api_keys, projects
from tests.bench.serve_process import ADAPTERS, MODEL, UNDECIDED, Inference, peak, store

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".vllm" / "bin" / "python"
NAME = "base"
START_SECONDS = 600
# What the server sets aside for keys and values when it starts, used or not.
KV_GIB = 2
TOKENS = 24
# Of the likeliest first tokens, between two engines that compute in another order.
LOGPROBS = 0.01
# So many of the five likeliest are in both, or the log-probs are not compared at all.
COMMON = 4
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Vllm:
    """The server, for a `with` block; with room for `adapters` it takes ours while it runs."""

    def __init__(self, log: Path, *, adapters: int) -> None:
        self._log = log
        self._adapters = adapters
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.base_url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self) -> "Vllm":
        environment = {
            **os.environ,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
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
        command += ["--enable-prompt-tokens-details"]
        if self._adapters:
            command += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", self._adapters]
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

    def client(self) -> httpx.AsyncClient:
        """Return a client of the server."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.base_url, timeout=600, limits=limits, trust_env=False)

    def memory(self) -> str:
        """Return the most memory its processes ever held, and what of it is set aside, as it is printed."""
        session = subprocess.run(
            ("ps", "-o", "pid=", "-s", str(self._process.pid)), check=True, capture_output=True, text=True
        )
        return (
            f"MEMORY adapters={self._adapters} vllm_peak_mb={peak(map(int, session.stdout.split())):.0f} "
            f"vllm_kv_reserved_mb={KV_GIB * 1024}"
        )

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
    names = (MODEL, *ADAPTERS)
    context = inference.context
    own = {name: _answer(inference, name) for name in names}
    problems = alike(own)
    (context.settings.root / "providers.toml").write_text(
        f'[[engine]]\nname = "vllm"\nbase_url = "{vllm.base_url}/v1"\nadapters = true\n'
        f'[engine.models]\n"{MODEL}" = "{NAME}"\n'
    )
    with _web(context) as client:
        theirs = {name: _asked(client, name) for name in names}
        for name in names:
            problems += [f"{name}: {problem}" for problem in differences(own[name], theirs[name])]
        if "".join(_streamed(client, ADAPTERS[0])) != theirs[ADAPTERS[0]].text:
            problems.append("a streamed answer is another")
        # Other weights under a name that was served before.
        with context.db.transaction() as session:
            row = session.get_one(Model, ADAPTERS[0])
            kept, row.uri = row.uri, session.get_one(Model, ADAPTERS[1]).uri
        if (stale := gap(own[ADAPTERS[1]], _asked(client, ADAPTERS[0]))) > LOGPROBS:
            problems.append(f"weights that were replaced still answer ({stale:.4f})")
        with context.db.transaction() as session:
            session.get_one(Model, ADAPTERS[0]).uri = kept
        made = client.responses.create(model=ADAPTERS[2], input="Who are you?", max_output_tokens=16)
        if made.status not in ("completed", "incomplete") or made.usage is None:
            problems.append("no response was made")
        print(vllm.memory(), flush=True)
        vllm.kill()
        try:
            _asked(client, ADAPTERS[0])
            problems.append("an engine that is gone still answers")
        except openai.InternalServerError as gone:
            if gone.status_code != 503 or "retry-after" not in gone.response.headers:
                problems.append(f"an engine that is gone: {gone}")
        client.models.list()
    (context.settings.root / "providers.toml").unlink()
    texts = sum(own[name].text == theirs[name].text for name in names)
    worst = max(gap(own[name], theirs[name]) for name in names)
    least = min(gap(own[one], own[other]) for one, other in combinations(names, 2))
    print(
        f"VLLM models={len(names)} texts_equal={texts} worst_logprob_gap={worst:.5f} "
        f"least_gap_between_models={least:.2f} problems={problems}",
        flush=True,
    )
    return problems


_Spelt = tuple[int, ...]
"""The bytes of a token."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its text, its tokens, and the log-probs of the likeliest tokens at each place."""

    text: str
    tokens: list[_Spelt]
    likeliest: list[dict[_Spelt, float]]


def gap(one: Answer, other: Answer) -> float:
    """Return the widest gap of the first token's log-probs; infinite with too few likeliest in common."""
    ours, theirs = one.likeliest[0], other.likeliest[0]
    common = ours.keys() & theirs.keys()
    if len(common) < COMMON:
        return float("inf")
    return max(abs(ours[token] - theirs[token]) for token in common)


def alike(own: Mapping[str, Answer]) -> list[str]:
    """Return which models answer so much alike that one could pass for the other."""
    return [
        f"{one} answers as {other} does"
        for one, other in combinations(own, 2)
        if gap(own[one], own[other]) <= LOGPROBS
    ]


def differences(ours: Answer, theirs: Answer) -> list[str]:
    """Return in what two engines' answers differ, save where ours was undecided about the next token."""
    problems = []
    if (widest := gap(ours, theirs)) > LOGPROBS:
        problems.append(f"log-probs differ by {widest:.4f}")
    if ours.text != theirs.text:
        pairs = enumerate(zip(ours.tokens, theirs.tokens, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), None)
        if place is None:
            problems.append("one text ends before the other")
        else:
            first, second = sorted(ours.likeliest[place].values(), reverse=True)[:2]
            if first - second > UNDECIDED:
                problems.append(f"texts part at token {place}, decided by {first - second:.4f}")
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


def _answer(inference: Inference, model: str) -> Answer:
    with inference.blocking_client() as client:
        answer = client.post("/v1/chat/completions", json={"model": model, "messages": QUESTION, **_BODY})
        answer.raise_for_status()
        return _told(answer.json())


def _asked(client: openai.OpenAI, model: str) -> Answer:
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


def _told(completion: dict[str, Any]) -> Answer:
    choice = completion["choices"][0]
    places = choice["logprobs"]["content"]
    return Answer(
        choice["message"]["content"],
        [tuple(place["bytes"] or ()) for place in places],
        [{tuple(one["bytes"] or ()): one["logprob"] for one in place["top_logprobs"]} for place in places],
    )

"""An inference process for `serve.py` on a throw-away data folder: the default model, eight adapters, a job.

`python -m tests.bench.serve_process adapters FOLDER` writes the adapters, `... job` is the job: a training
step for each line it reads.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx

from app.core import clock, migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Model
from app.services import heartbeats, models
from worker import models as base_models
from worker.engine import machine

MODEL = base_models.DEFAULT_MODEL
ADAPTERS = tuple(f"ft:{MODEL}:personal::adapter{n}" for n in range(8))
# Where the two likeliest tokens are so close, rounding decides.
UNDECIDED = 1e-3


def store() -> Path:
    """Return the model store, with the default model in it."""
    folder = Settings().models.expanduser()
    base_models.fetch_default(folder)
    return folder


def peak(pids: Iterable[int]) -> float:
    """Return the most memory that processes ever held, each for itself, in MB."""
    total = 0.0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                total += int(line.split()[1]) / 1024
    return total


class Inference:
    """The process, for a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._settings = Settings(data=folder / "data", models=store())

    def __enter__(self) -> "Inference":
        settings = self._settings
        settings.inference_socket.parent.mkdir(parents=True)
        migrate.upgrade(settings)
        self.context = Context.build(settings)
        found = {}
        for model in base_models.scan(settings):
            found[model.id] = {**asdict(model), "path": str(model.path)}
        with self.context.db.transaction() as session:
            models.register_base_models(session, found=found)
        subprocess.run(_command("adapters", str(self.context.storage.path("adapters"))), check=True)
        with self.context.db.transaction() as session:
            for number, name in enumerate(ADAPTERS):
                session.add(
                    Model(
                        id=name,
                        kind="tuned",
                        base_model=MODEL,
                        uri=f"adapters/{number}",
                        details={},
                        created_at=clock.now(),
                    )
                )
        environment = {**os.environ, "TUNESMITH_DATA": str(settings.root)}
        self._process = subprocess.Popen((sys.executable, "-m", "worker.serving"), env=environment)
        with self.blocking_client() as client:
            until = time.monotonic() + 60
            while not settings.inference_socket.exists():
                if time.monotonic() > until:
                    raise TimeoutError("the inference process does not start")
                time.sleep(0.1)
            client.post("/v1/models/load", json={"model": MODEL}).raise_for_status()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self.context.db.dispose()

    def peak(self) -> float:
        """Return the most memory it ever held, in MB."""
        return peak((self._process.pid,))

    @property
    def _socket(self) -> str:
        return str(self._settings.inference_socket)

    def client(self) -> httpx.AsyncClient:
        """Return a client of the process."""
        limits = httpx.Limits(max_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=self._socket, limits=limits)
        return httpx.AsyncClient(transport=transport, base_url="http://inference", timeout=600)

    def blocking_client(self) -> httpx.Client:
        """Return a client of the process for a thread."""
        transport = httpx.HTTPTransport(uds=self._socket)
        return httpx.Client(transport=transport, base_url="http://inference", timeout=600)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Have a job at work on this machine, which the process learns from the worker's heartbeat."""
        self._beat()
        # In a session of its own, as the worker starts its trainers.
        self._job = subprocess.Popen(
            _command("job"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            yield
        finally:
            self._job.stdin.close()
            self._job.wait(60)

    def job_step(self) -> float:
        """Let the job take a step and return its seconds."""
        self._beat()
        self._job.stdin.write("step\n")
        self._job.stdin.flush()
        return float(self._job.stdout.readline())

    def _beat(self) -> None:
        """Beat as the worker does: a beat that grows old says that nobody trains."""
        detail = {"machine": machine.identity(), "trainers": ["ftjob-bench"]}
        with self.context.db.transaction() as session:
            heartbeats.beat(session, part="worker", detail=detail)


def _command(*what: str) -> tuple[str, ...]:
    return (sys.executable, "-W", "ignore", "-m", "tests.bench.serve_process", *what)


def write_adapters(folder: Path) -> None:
    """Write eight adapters that change the answers."""
    import torch

    from worker.engine.config import TrainingConfig
    from worker.engine.policy import Policy

    config = TrainingConfig(
        seed=0, batch_size=1, samples_per_prompt=2, total_steps=1, max_completion_tokens=1, lora_rank=16
    )
    policy = Policy.load(store() / MODEL, config=config)
    for number in range(len(ADAPTERS)):
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in policy.adapter.values():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
        policy.save_adapter(folder / str(number))


def work() -> None:
    """Take a training step of the first shape for each line that comes, and answer with its seconds."""
    from worker.engine.config import TrainingConfig
    from worker.engine.policy import Policy
    from worker.engine.reinforcement import Reinforcement
    from worker.engine.types import Prompt

    config = TrainingConfig(
        seed=1, batch_size=4, samples_per_prompt=8, total_steps=1000, max_completion_tokens=48
    )
    policy = Policy.load(store() / MODEL, config=config)
    prompts = [
        Prompt(n, policy.encode_chat([{"role": "user", "content": f"Write {n} as a word."}]))
        for n in range(8)
    ]
    run = Reinforcement(
        policy,
        train_prompts=prompts,
        valid_prompts=(),
        score=lambda rollouts: [float(one.sample_index % 2) for one in rollouts],
        config=config,
    )
    steps = run.steps()
    for _ in sys.stdin:
        started = time.perf_counter()
        next(steps)
        print(json.dumps(time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    # As the trainer does, before torch is loaded.
    machine.wait_briefly()
    machine.keep_memory()
    if sys.argv[1] == "adapters":
        write_adapters(Path(sys.argv[2]))
    else:
        work()

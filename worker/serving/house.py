"""The models in memory and the one thread that computes with them.

Base models are loaded when somebody asks for them, adapters when a request's turn comes; what nobody has used
for a while is unloaded, sooner when memory is short. Called by `api.py` from other threads; what decodes is
`batch.py`'s.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from app.core.errors import AppError, RateLimited, Unavailable
from worker.engine.config import TrainingConfig
from worker.engine.errors import EngineError
from worker.engine.policy import Policy
from worker.serving.batch import Batch
from worker.serving.preparing import Preparing
from worker.serving.ticket import Ticket

logger = logging.getLogger("worker.serving")

T = TypeVar("T")

_SWEEP_SECONDS = 2.0
_RETRY_SECONDS = 2
# The engine's config knows of training; serving uses the fewest of its own adapter's numbers.
_CONFIG = TrainingConfig(
    seed=0, batch_size=1, samples_per_prompt=2, total_steps=1, max_completion_tokens=1, lora_rank=1
)


@dataclass(slots=True)
class Base:
    """A base model in memory with the requests for it. Units: bytes, and seconds of the monotonic clock."""

    name: str
    policy: Policy
    preparing: Preparing
    batch: Batch
    weights: int
    opened: ExitStack
    used_at: float = field(default_factory=time.monotonic)
    adapters: dict[str, float] = field(default_factory=dict)  # when each was used last


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process may take: bytes of weights and caches, waiting requests, rows, idle seconds."""

    memory: int
    waiting: int
    rows: int
    idle_seconds: float


class House(threading.Thread):
    """Holds the base models and computes for all of them, turn by turn."""

    def __init__(
        self,
        limits: Limits,
        *,
        threads: Callable[[], int | None] = lambda: None,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        super().__init__(name="decode", daemon=True)
        self._limits = limits
        self._threads = threads
        self._share = share
        self._bases: dict[str, Base] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loading: dict[str, Future[Base]] = {}
        self._swept_at = 0.0

    # From other threads

    def base(self, name: str, directory: Path) -> Future[Base]:
        """Return a base model, loading it unless it is there. The future may hold an AppError."""
        with self._wake:
            if (base := self._bases.get(name)) is not None:
                base.used_at = time.monotonic()
                found: Future[Base] = Future()
                found.set_result(base)
                return found
            if name not in self._loading:
                self._loading[name] = self._loader.submit(self._load, name, directory)
            return self._loading[name]

    def submit(self, base: Base, ticket: Ticket) -> None:
        """Let a request wait for its turn. Raises: RateLimited when too many wait already."""
        if self.waiting >= self._limits.waiting:
            raise RateLimited(
                f"{self._limits.waiting} requests wait already. Please try again in a moment.",
                headers={"retry-after": str(_RETRY_SECONDS)},
            )
        self._order(lambda: self._take_in(base, ticket))

    def unload(self, name: str) -> bool:
        """Let go of a base model or an adapter, and say whether it was there; its requests end with a 503."""
        return self._ask(lambda: self._unload(name)).result()

    def describe(self) -> list[dict[str, object]]:
        """Return what is loaded, base models and adapters, with their memory."""
        return [
            {
                "id": base.name,
                "weights_bytes": base.weights,
                "cache_bytes": base.batch.nbytes,
                "rows": base.batch.rows,
                "waiting": base.batch.waiting,
                "adapters": sorted(base.adapters),
            }
            for base in list(self._bases.values())
        ]

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(base.batch.waiting for base in list(self._bases.values())) + len(self._orders)

    def stop(self) -> None:
        """End the thread; what is under way ends with a 503."""
        self._stopping = True
        self._order(lambda: None)
        if self.ident is not None:
            self.join()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _ask(self, question: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()

        def order() -> None:
            try:
                answer.set_result(question())
            except Exception as problem:  # boundary: it is the asker's to deal with
                answer.set_exception(problem)

        self._order(order)
        return answer

    # On the thread that computes

    def run(self) -> None:
        """Compute until stopped."""
        threads: int | None = None
        with torch.no_grad():
            while not self._stopping:
                wanted = self._threads()
                if wanted is not None and wanted != threads:
                    torch.set_num_threads(wanted)
                    threads = wanted
                self._follow_orders()
                self._sweep()
                began = time.monotonic()
                worked = [self._turn(base) for base in list(self._bases.values())]
                if any(worked):
                    self._rest(time.monotonic() - began)
                else:
                    with self._wake:
                        if not self._orders:
                            self._wake.wait(_SWEEP_SECONDS)
            for base in list(self._bases.values()):
                self._drop(base, "The inference process is stopping.")

    def _rest(self, worked: float) -> None:
        """Leave the machine to a job that trains here, in proportion to the seconds just taken."""
        share = self._share()
        if share < 1:
            time.sleep(worked * (1 / share - 1))

    def _follow_orders(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _turn(self, base: Base) -> bool:
        batch = base.batch
        batch.room = self._room(base)
        try:
            worked = batch.turn()
        except Exception as problem:  # boundary: one base model's fault must not end the others
            logger.exception("a turn of %s failed", base.name)
            batch.fail(Unavailable(f"The model '{base.name}' failed: {problem}", code="model_failed"))
            return True
        if worked:
            base.used_at = time.monotonic()
        return worked

    def _take_in(self, base: Base, ticket: Ticket) -> None:
        if self._bases.get(base.name) is not base:
            ticket.emit(_went(base.name))
            return
        try:
            self._bring(base, ticket)
        except AppError as problem:
            ticket.emit(problem)
            return
        if ticket.choices[0].row.finish is not None:  # the grammar leaves nothing to choose
            for choice in ticket.choices:
                ticket.tell(choice)
            return
        base.batch.add(ticket)

    def _bring(self, base: Base, ticket: Ticket) -> None:
        """Have the adapter of a request in memory. Raises: Unavailable."""
        if ticket.adapter is None or ticket.directory is None:
            return
        if ticket.adapter not in base.adapters:
            try:
                base.policy.add_adapter(ticket.adapter, ticket.directory)
            except (OSError, EngineError, ValueError) as problem:
                raise Unavailable(
                    f"The model '{ticket.adapter}' can't be loaded: {problem}", code="model_not_loadable"
                ) from problem
            logger.info("adapter %s loaded", ticket.adapter)
            self._spare(base)
        base.adapters[ticket.adapter] = time.monotonic()

    def _spare(self, base: Base) -> None:
        """Unload idle adapters, the longest unused first, while weights alone exceed the memory."""
        needed = base.batch.adapters
        idle = sorted((used_at, name) for name, used_at in base.adapters.items() if name not in needed)
        while idle and self._weights() > self._limits.memory:
            self._drop_adapter(base, idle.pop(0)[1])

    def _room(self, base: Base) -> int:
        """Return what a base model's keys and values may take of the memory nobody else has."""
        others = sum(one.batch.nbytes for one in self._bases.values() if one is not base)
        return max(0, self._limits.memory - self._weights() - others)

    def _weights(self) -> int:
        return sum(
            base.weights + sum(base.policy.adapter_bytes(name) for name in base.adapters)
            for base in self._bases.values()
        )

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        self._swept_at = now
        for base in list(self._bases.values()):
            needed = base.batch.adapters
            for name in needed:
                base.adapters[name] = now
            for name, used_at in list(base.adapters.items()):
                if now - used_at > self._limits.idle_seconds:
                    self._drop_adapter(base, name)
            if not base.batch.rows and now - base.used_at > self._limits.idle_seconds:
                self._drop(base, "")

    def _unload(self, name: str) -> bool:
        if (base := self._bases.get(name)) is not None:
            self._drop(base, f"The model '{name}' was unloaded.")
            return True
        found = [base for base in self._bases.values() if name in base.adapters]
        for base in found:
            base.batch.end(name, Unavailable(f"The model '{name}' was unloaded."))
            self._drop_adapter(base, name)
        return bool(found)

    def _drop_adapter(self, base: Base, name: str) -> None:
        base.policy.drop_adapter(name)
        base.batch.forget(name)
        del base.adapters[name]
        logger.info("adapter %s unloaded", name)

    def _drop(self, base: Base, reason: str) -> None:
        base.batch.fail(Unavailable(reason or f"The model '{base.name}' was unloaded."))
        with self._wake:
            self._bases.pop(base.name, None)
        base.opened.close()
        logger.info("model %s unloaded", base.name)

    # On the loading thread

    def _load(self, name: str, directory: Path) -> Base:
        try:
            size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
            self._ask(lambda: self._make_room(name, 2 * size)).result()
            policy = Policy.load(directory, config=_CONFIG)
            opened = ExitStack()
            opened.enter_context(policy.serving())
            batch = Batch(policy, most_rows=self._limits.rows)
            base = Base(name, policy, Preparing(policy), batch, policy.weight_bytes, opened)
            self._ask(lambda: self._open(base)).result()
            logger.info("model %s loaded, %.0f MB", name, base.weights / 1e6)
        except (OSError, EngineError, ValueError, MemoryError) as problem:
            logger.exception("model %s can't be loaded", name)
            raise Unavailable(
                f"The model '{name}' can't be loaded: {problem}", code="model_not_loadable"
            ) from problem
        finally:
            with self._wake:
                self._loading.pop(name, None)
        return base

    def _open(self, base: Base) -> None:
        with self._wake:
            self._bases[base.name] = base

    def _make_room(self, name: str, wanted: int) -> None:
        """Unload idle base models until another fits. Raises: Unavailable."""
        idle = sorted(
            (base for base in self._bases.values() if not base.batch.rows and not base.batch.waiting),
            key=lambda base: base.used_at,
        )
        while self._weights() + wanted > self._limits.memory:
            if not idle:
                gib = 1024**3
                raise Unavailable(
                    f"The model '{name}' takes about {wanted / gib:.1f} GiB, and "
                    f"{max(0, self._limits.memory - self._weights()) / gib:.1f} GiB are free of "
                    f"{self._limits.memory / gib:.1f} (TUNESMITH_INFERENCE_MEMORY_BYTES).",
                    code="model_too_large",
                )
            self._drop(idle.pop(0), "")


def _went(name: str) -> Unavailable:
    return Unavailable(f"The model '{name}' was just unloaded. Please try again.", retry_after=1)

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
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from app.core.errors import AppError, Unavailable
from worker.engine import memory
from worker.engine.config import TrainingConfig
from worker.engine.errors import ModelTooLarge
from worker.engine.policy import Policy
from worker.serving.batch import Batch
from worker.serving.preparing import Preparing
from worker.serving.sharing import Pace
from worker.serving.ticket import Ticket

logger = logging.getLogger("worker.serving")

T = TypeVar("T")

RETRY_SECONDS = 2
_SWEEP_SECONDS = 2.0
# So many tokens of waiting prompts are read at once while others wait for their next token; the fewer while
# a job trains here, when everything takes several times as long.
_PIECE, _SMALL_PIECE = 256, 64
# Models whose files are fetched or waited for at once; one at a time is loaded.
_LOADERS = 4
# The engine's config knows of training; serving uses the fewest of its own adapter's numbers.
_CONFIG = TrainingConfig(
    seed=0, batch_size=1, samples_per_prompt=2, total_steps=1, max_completion_tokens=1, lora_rank=1
)


@dataclass(slots=True)
class Held:
    """An adapter in memory. Units: bytes, and seconds of the monotonic clock."""

    nbytes: int
    used_at: float


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
    adapters: dict[str, Held] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process may take: bytes of weights and caches, waiting requests, rows, idle seconds."""

    memory: int
    waiting: int
    rows: int
    idle_seconds: float


class House(threading.Thread):
    """Holds the base models and computes for all of them, turn by turn.

    `failed` is called when it can't go on: whoever runs it ends the process then.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        threads: Callable[[], int | None] = lambda: None,
        share: Callable[[], float] = lambda: 1.0,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="decode", daemon=True)
        self.limits = limits
        self._threads = threads
        self._share = share
        self._failed = failed
        self._pace = Pace()
        self._bases: dict[str, Base] = {}
        self._reserved = 0  # for a model that is being loaded
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._ended = False
        self._loaders = threading.BoundedSemaphore(_LOADERS)
        self._one_at_a_time = threading.Lock()
        self._loading: dict[str, Future[Base]] = {}
        self._swept_at = 0.0
        self._told: list[dict[str, object]] = []

    # From other threads

    def base(self, name: str, locate: Callable[[], Path]) -> Future[Base]:
        """Return a base model, loading it from where it lies unless it is there.

        `locate` may take its time: it is called on a thread that loads. The future may hold an AppError.
        """
        with self._wake:
            if (base := self._bases.get(name)) is not None:
                base.used_at = time.monotonic()
                found: Future[Base] = Future()
                found.set_result(base)
                return found
            if name not in self._loading:
                self._loading[name] = Future()
                # A thread that ends: what it leaves of OpenMP's would make the decode thread's sleep at once
                # (docs/decisions/brief-waiting.md).
                threading.Thread(target=self._load, args=(name, locate), name="load", daemon=True).start()
            return self._loading[name]

    def bring(self, base: Base, name: str | None, directory: Path | None) -> Future[None]:
        """Have an adapter in memory before anybody asks it. The future may hold an AppError."""
        return self._ask(lambda: self._bring_now(base, name, directory))

    def submit(self, base: Base, ticket: Ticket) -> None:
        """Let a request wait for its turn. Raises: Unavailable when the process is stopping."""
        self._order(lambda: self._take_in(base, ticket))

    def unload(self, name: str) -> Future[bool]:
        """Let go of a base model or an adapter, and say whether it was there; its requests end with a 503."""
        return self._ask(lambda: self._unload(name))

    @property
    def goes_on(self) -> bool:
        """Whether it computes, and means to go on."""
        return self.is_alive() and not self._stopping

    def describe(self) -> list[dict[str, object]]:
        """Return what is loaded, base models and adapters, with their memory, after the last turn."""
        return self._told

    def stop(self) -> None:
        """End the thread; what is under way ends with a 503."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self.ident is not None:
            self.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            if self._ended:
                raise _closing()
            self._orders.append(order)
            self._wake.notify()

    def _ask(self, question: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()

        def order() -> None:
            try:
                found = question()
            except Exception as problem:  # boundary: it is the asker's to deal with
                answer.set_exception(problem)
                return
            self._tell()  # who has the answer sees what it changed
            answer.set_result(found)

        self._order(order)
        return answer

    # On the thread that computes

    def run(self) -> None:
        """Compute until stopped. What nobody foresaw ends all requests, and the process."""
        try:
            with torch.no_grad():
                while not self._stopping:
                    self._round()
        except Exception:  # boundary: this thread is the process's purpose
            logger.exception("the inference process can't go on")
            self._stopping = True
            self._failed()
        finally:
            self._close()

    def _round(self) -> None:
        threads, share = self._threads(), self._share()
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self._follow_orders()
        self._sweep()
        began = time.thread_time()  # what it waits for the trainer's threads is no work
        piece = _PIECE if share >= 1 else _SMALL_PIECE
        worked = [self._turn(base, piece) for base in list(self._bases.values())]
        self._tell()
        if any(worked):
            is_urgent = any(base.batch.is_urgent for base in self._bases.values())
            rest = self._pace.rest(time.thread_time() - began, share, hurry=is_urgent)
            # A new request is begun at once, unless that has been done too often.
            self._wait(rest, firm=not self._pace.has_credit)
        else:
            self._wait(_SWEEP_SECONDS, firm=False)

    def _wait(self, seconds: float, *, firm: bool) -> None:
        if seconds > 0:
            began = time.monotonic()
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or (not firm and bool(self._orders)), seconds)
            self._pace.rested(time.monotonic() - began)

    def _follow_orders(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _close(self) -> None:
        for base in list(self._bases.values()):
            self._drop(base, _closing())
        with self._wake:
            self._ended = True
        self._tell()
        self._follow_orders()

    def _tell(self) -> None:
        """Say what there is, for other threads: they see nothing that changes under their eyes."""
        self._told = [
            {
                "id": base.name,
                "weights_bytes": base.weights,
                "adapter_bytes": sum(held.nbytes for held in base.adapters.values()),
                "cache_bytes": base.batch.nbytes,
                "rows": base.batch.rows,
                "waiting": base.batch.waiting,
                "adapters": sorted(base.adapters),
            }
            for base in self._bases.values()
        ]

    def _turn(self, base: Base, piece: int) -> bool:
        try:
            worked = base.batch.turn(piece)
        except Exception as problem:  # boundary: one base model's fault must not end the others
            logger.exception("a turn of %s failed", base.name)
            base.batch.fail(Unavailable(f"The model '{base.name}' failed: {problem}", code="model_failed"))
            return True
        if worked:
            base.used_at = time.monotonic()
        return worked

    def _take_in(self, base: Base, ticket: Ticket) -> None:
        if self._bases.get(base.name) is not base:
            ticket.emit(_closing() if self._ended else _went(base.name))
        elif ticket.choices[0].row.finish is None:
            base.batch.add(ticket)
        else:  # the grammar leaves nothing to choose
            for choice in ticket.choices:
                ticket.tell(choice)

    # Adapters

    def _bring(self, name: str, ticket: Ticket) -> bool:
        """Have the adapter of a request in memory; False where it must wait for it. Raises: Unavailable."""
        if ticket.adapter is None or ticket.directory is None:
            return True
        return self._bring_adapter(self._bases[name], ticket.adapter, ticket.directory)

    def _bring_now(self, base: Base, name: str | None, directory: Path | None) -> None:
        if self._bases.get(base.name) is not base:
            raise _went(base.name)
        if name is None or directory is None:
            return
        if not self._bring_adapter(base, name, directory):
            raise Unavailable(f"There is no room for '{name}' at the moment.", retry_after=RETRY_SECONDS)

    def _bring_adapter(self, base: Base, name: str, directory: Path) -> bool:
        if name not in base.adapters:
            try:
                size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
                if not self._clear(size):
                    if any(one.batch.computes for one in self._bases.values()):
                        return False
                    raise self._no_room(name, size, least=base.weights + size)
                base.policy.add_adapter(name, directory)
            except AppError:
                raise
            except Exception as problem:  # boundary: a damaged file fails in any way there is
                logger.exception("adapter %s can't be loaded", name)
                base.policy.drop_adapter(name)
                raise Unavailable(
                    f"The model '{name}' can't be loaded: {problem}", code="model_not_loadable"
                ) from problem
            base.adapters[name] = Held(base.policy.adapter_bytes(name), 0.0)
            logger.info("adapter %s loaded", name)
        base.adapters[name].used_at = time.monotonic()
        return True

    # Memory

    def _taken(self) -> int:
        """Return what weights, adapters with their stacks, keys and values take."""
        return self._reserved + sum(
            base.weights
            + sum(held.nbytes for held in base.adapters.values())
            + base.policy.stacks_bytes
            + base.batch.nbytes
            for base in self._bases.values()
        )

    def _free(self) -> int:
        return self.limits.memory - self._taken()

    def _room(self, name: str, wanted: int) -> int:
        """Return what a base model's keys and values may take; others make room where it wants more."""
        base = self._bases[name]
        self._clear(wanted - base.batch.nbytes, but=base, models=False)
        return max(0, self._free() + base.batch.nbytes)

    def _clear(self, wanted: int, *, but: Base | None = None, models: bool = True) -> bool:
        """Say whether so many bytes are free, once what nobody computes with has gone as far as needed.

        Kept prefixes go first, of all base models but one; then adapters, then models; of each the longest
        unused first.
        """
        bases = sorted(self._bases.values(), key=lambda base: base.used_at)
        for base in bases:
            if base is not but and (lack := wanted - self._free()) > 0:
                base.batch.shrink(lack)
        if self._free() >= wanted:
            return True
        idle = [
            (held.used_at, name, base)
            for base in bases
            for name, held in base.adapters.items()
            if name not in base.batch.adapters
        ]
        for _, name, base in sorted(idle, key=lambda one: one[:2]):
            if self._free() >= wanted:
                return True
            self._drop_adapter(base, name)
        for base in bases if models else ():
            if self._free() < wanted and base.batch.is_idle:
                self._drop(base, _went(base.name))
        return self._free() >= wanted

    def _no_room(self, name: str, wanted: int, *, least: int) -> Unavailable:
        """Return the error of a model that doesn't fit: ever, as it takes `least`, or at the moment."""
        gib = 1024**3
        return Unavailable(
            f"The model '{name}' takes about {wanted / gib:.1f} GiB, and "
            f"{max(0, self._free()) / gib:.1f} GiB are free of {self.limits.memory / gib:.1f} "
            "(TUNESMITH_INFERENCE_MEMORY_BYTES).",
            code="model_too_large" if least > self.limits.memory else None,
            retry_after=None if least > self.limits.memory else RETRY_SECONDS,
        )

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        self._swept_at = now
        for base in list(self._bases.values()):
            for name in base.batch.adapters:
                base.adapters[name].used_at = now
            for name, held in list(base.adapters.items()):
                if now - held.used_at > self.limits.idle_seconds:
                    self._drop_adapter(base, name)
            if base.batch.is_idle and now - base.used_at > self.limits.idle_seconds:
                self._drop(base, _went(base.name))

    def _unload(self, name: str) -> bool:
        gone = Unavailable(f"The model '{name}' was unloaded.")
        if (base := self._bases.get(name)) is not None:
            self._drop(base, gone)
            return True
        for base in self._bases.values():
            base.batch.end(name, gone)
        found = [base for base in self._bases.values() if name in base.adapters]
        for base in found:
            self._drop_adapter(base, name)
        return bool(found)

    def _drop_adapter(self, base: Base, name: str) -> None:
        base.policy.drop_adapter(name)
        base.batch.forget(name)
        del base.adapters[name]
        logger.info("adapter %s unloaded", name)

    def _drop(self, base: Base, reason: Unavailable) -> None:
        base.batch.fail(reason)
        with self._wake:
            self._bases.pop(base.name, None)
        base.opened.close()
        logger.info("model %s unloaded", base.name)

    # On the threads that load

    def _load(self, name: str, locate: Callable[[], Path]) -> None:
        found = self._loading[name]
        try:
            base = self._located(name, locate)
        except AppError as problem:
            self._end_loading(name)
            found.set_exception(problem)
        else:
            self._end_loading(name)
            found.set_result(base)

    def _end_loading(self, name: str) -> None:
        with self._wake:
            self._loading.pop(name, None)

    def _located(self, name: str, locate: Callable[[], Path]) -> Base:
        try:
            with self._loaders:
                directory = locate()
            with self._one_at_a_time:
                if self._stopping:
                    raise _closing()
                return self._load_here(name, directory)
        except AppError:
            raise
        except Exception as problem:  # boundary: a damaged folder fails in any way there is
            logger.exception("model %s can't be loaded", name)
            code = "model_too_large" if isinstance(problem, ModelTooLarge) else "model_not_loadable"
            raise Unavailable(f"The model '{name}' can't be loaded: {problem}", code=code) from problem

    def _load_here(self, name: str, directory: Path) -> Base:
        needed = _needed(directory)
        try:
            self._ask(lambda: self._reserve(name, needed)).result()
            policy = Policy.load(directory, config=_CONFIG)
            # By its name, not itself: memory must come back when it goes, not when a cycle is found.
            room, bring = partial(self._room, name), partial(self._bring, name)
            batch = Batch(policy, most_rows=self.limits.rows, room=room, bring=bring)
            base = Base(name, policy, Preparing(policy), batch, policy.weight_bytes, ExitStack())
            base.opened.enter_context(policy.serving())
            self._ask(lambda: self._open(base)).result()
        finally:
            self._reserved = 0
        logger.info("model %s loaded, %.0f MB", name, base.weights / 1e6)
        return base

    def _reserve(self, name: str, wanted: int) -> None:
        if not self._clear(wanted):
            raise self._no_room(name, wanted, least=wanted)
        self._reserved = wanted

    def _open(self, base: Base) -> None:
        # Measured now, where it was read from the files' headers before.
        self._reserved = 0
        if not self._clear(base.weights):
            raise self._no_room(base.name, base.weights, least=base.weights)
        with self._wake:
            self._bases[base.name] = base


def _needed(directory: Path) -> int:
    """Return what a model takes to be served, from its files' headers. Raises: ModelUnreadable."""
    cuda = torch.cuda.is_available()
    parts = memory.needed(directory, _CONFIG, torch.bfloat16 if cuda else torch.float32)
    return parts["weights"] + (0 if cuda else parts["their copy for sampling"])


def _went(name: str) -> Unavailable:
    return Unavailable(f"The model '{name}' was just unloaded. Please try again.", retry_after=1)


def _closing() -> Unavailable:
    return Unavailable(
        "The inference process is stopping. It comes back by itself.", retry_after=RETRY_SECONDS
    )

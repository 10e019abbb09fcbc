"""python graders: a user's `grade(sample, item)` in the sandbox, and what each way of ending means.

A warm process per source, several of them where calls come at once. Whatever the user's source does is a
flagged grade with their own traceback; a process of ours that dies is infrastructure. Handed to `grade()` in
its `means`, by the trainer for one job, by the web process for one request.

Source: https://platform.openai.com/docs/guides/graders#python-graders
"""

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import LifoQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from app.graders.result import Grade, GradeErrors, graders_fault, infrastructure_fault, storable
from app.graders.sandbox.launch import MOST_SCRATCH, Limits
from app.graders.sandbox.level import Sandbox, choose
from app.graders.sandbox.process import Ended, Zygote, ZygoteError

if TYPE_CHECKING:
    from app.core.settings import Settings

# Sources kept warm at once; a job has as many as its grader has Python parts.
MOST_SOURCES = 4
# Calls at once in this process, whoever makes them: each may use a core and its share of the memory.
_CORES = os.cpu_count() or 1
_LEAST_SHARE = 768 * 1024**2
_TURNS = threading.BoundedSemaphore(_CORES)
_SIGNALS = {
    "SIGSEGV": "it touched memory that is not its own",
    "SIGKILL": "it was out of memory, or closed its way back",
    "SIGXCPU": "it used more processor time than is allowed",
    "SIGXFSZ": "it wrote a larger file than is allowed",
    "SIGSYS": "it made a forbidden system call",
}


class PythonGraders:
    """Runs the sources of one job or request. Safe for threads; leaving its context ends its processes."""

    def __init__(self, sandbox: Sandbox, *, limits: Limits | None = None, processes: int = 2) -> None:
        self.sandbox = sandbox
        self._limits = limits or Limits()
        self._processes = processes
        self._warm: OrderedDict[str, _Warm] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, settings: "Settings", *, concurrency: int = 1) -> Self:
        """Return a runner in the best sandbox there is.

        Raises: SandboxUnavailable, saying what to install.
        """
        sandbox = choose(packages=settings.grader_packages.expanduser().resolve(), private=settings.root)
        return cls(sandbox, limits=limits_of(settings), processes=max(1, min(concurrency, _CORES)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        with self._lock:
            found = list(self._warm.values())
            self._warm.clear()
        for warm in found:
            warm.close()

    def check(self, source: str) -> str | None:
        """Return what is wrong with a source before it is ever called: the parser's words, or None.

        Raises: ZygoteError.
        """
        with self._using(source) as warm:
            return warm.look().error

    def missing(self, source: str) -> tuple[str, ...]:
        """Return the modules a source imports that are not there. Raises: ZygoteError."""
        with self._using(source) as warm:
            return warm.look().missing

    def run(self, source: str, *, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Grade:
        """Call the source's `grade(sample, item)`; never raises."""
        whole = {"output_json": None, "output_audio": None, **sample}
        request = json.dumps([whole, dict(item)]).encode()
        try:
            with self._using(source) as warm:
                outcome = warm.call(request)
        except ZygoteError as problem:
            errors = GradeErrors(python_grader_server_error=True, python_grader_server_error_type="sandbox")
            return infrastructure_fault(f"The sandbox failed: {problem}.", errors)
        return _flagged(outcome) if isinstance(outcome, str) else _grade(outcome, self._limits)

    @contextmanager
    def _using(self, source: str) -> Iterator["_Warm"]:
        with self._lock:
            if source not in self._warm:
                self._warm[source] = _Warm(self.sandbox, source, self._limits, self._processes)
            self._warm.move_to_end(source)
            warm = self._warm[source]
            warm.users += 1
            surplus = max(0, len(self._warm) - MOST_SOURCES)
            idle = [key for key, one in self._warm.items() if not one.users]
            dropped = [self._warm.pop(key) for key in idle[:surplus]]
        try:
            for one in dropped:
                one.close()
            yield warm
        finally:
            with self._lock:
                warm.users -= 1


@dataclass(frozen=True, slots=True)
class _Look:
    """What a zygote found out about its source before the first call."""

    error: str | None
    missing: tuple[str, ...]


class _Warm:
    """The processes of one source. A slot holds a warm process, or None where one is still to be started.

    `users` counts who is about to call; the owner's lock guards it.
    """

    def __init__(self, sandbox: Sandbox, source: str, limits: Limits, processes: int) -> None:
        self.users = 0
        self._sandbox = sandbox
        self._source = source
        self._limits = limits
        self._processes = processes
        self._slots: LifoQueue[Zygote | None] = LifoQueue()
        for _ in range(processes):
            self._slots.put(None)

    def look(self) -> _Look:
        """Start a process if there is none and return what it says of the source. Raises: ZygoteError."""
        zygote = self._slots.get()
        try:
            zygote = zygote or self._sandbox.start(self._source, self._limits)
            return _Look(zygote.error, zygote.missing)
        finally:
            self._slots.put(zygote)

    def call(self, request: bytes) -> Ended | str:
        """Return how a call ended, or what is wrong with the source. Raises: ZygoteError."""
        zygote = self._slots.get()
        try:
            zygote = zygote or self._sandbox.start(self._source, self._limits)
            if zygote.error is not None:
                return zygote.error
            with _TURNS:
                return zygote.call(request)
        except ZygoteError:
            if zygote is not None:
                zygote.close()
                zygote = None
            raise
        finally:
            self._slots.put(zygote)

    def close(self) -> None:
        for _ in range(self._processes):
            zygote = self._slots.get()
            if zygote is not None:
                zygote.close()


def _grade(ended: Ended, limits: Limits) -> Grade:
    if ended.how == "deadline":
        late = _flagged(f"The grader ran longer than {limits.seconds:g} seconds and was stopped.")
        return replace(late, timed_out=True)
    if ended.how == "flood":
        return _flagged("The grader wrote more than 64 kB as its answer.")
    if ended.how != "exit":
        why = _SIGNALS.get(ended.how, "it was stopped")
        return _flagged(f"The grader's process died of {ended.how}: {why}.")
    if not ended.answer:
        return _flagged("The grader's process ended without an answer.")
    try:
        answer = json.loads(ended.answer)
    except (ValueError, RecursionError):
        return _flagged("The grader's process left an answer that cannot be read.")
    match answer:
        case {"reward": int() | float() as reward} if not isinstance(reward, bool) and len(answer) == 1:
            return _number(reward)
        case {"error": str() as error} if len(answer) == 1:
            return _flagged(error)
    return _flagged("The grader's process left an answer that cannot be read.")


def _number(reward: float) -> Grade:
    try:
        number = float(reward)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return _flagged(f"grade returned {number}, not a finite number")
    return Grade(reward=number)


def _flagged(what: str) -> Grade:
    details = storable(what)
    errors = GradeErrors(python_grader_runtime_error=True, python_grader_runtime_error_details=details)
    return graders_fault(details, errors)


def limits_of(settings: "Settings") -> Limits:
    """Return one call's share: OpenAI's limits, or less where all calls at once would take half the machine.

    Scratch is memory too, so it has a third of that share, and what is lent to it is not lent to the call.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = max(_LEAST_SHARE, machine // 2 // _CORES)
    return Limits(
        seconds=settings.grader_seconds,
        memory_bytes=min(settings.grader_memory_bytes, share * 2 // 3),
        scratch_bytes=min(MOST_SCRATCH, share // 3),
    )

"""The warm process of one grader: it imports what the source imports, then forks a clean child for each call.

Runs inside the sandbox. The user's source never runs in this process: it is parsed by a child under full
lockdown first, and only its code object and the names of its imports are used here. Requests and replies are
frames on file descriptor 0; an end of file there means that the service is gone.
"""

import ast
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import CodeType
from typing import Any

from app.graders.sandbox import call, confine, source
from app.graders.sandbox.seccomp import Filter
from app.graders.sandbox.syscalls import MACHINES

HOST = 0
MOST_ANSWER = 64 * 1024
# A module of the standard library that does something when imported has no place in this process.
_NOT_PRELOADED = {"antigravity", "this", "idlelib", "test", "turtledemo", "lib2to3", "ensurepip", "pip"}


def main(plan: Mapping[str, Any]) -> None:
    """Shut this process in, warm up, answer calls until the host is gone."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    machine = MACHINES[os.uname().machine]
    inner, outer = Filter(machine), Filter(machine, forks=True)
    sys.path[:] = [*sys.path, *plan["packages"]]
    confine.enter(plan)
    # Importing runs other people's code, chosen by the source: it gets no more than forking needs.
    outer.install()
    zygote = Zygote(plan, inner, null)
    send({"ready": True, **zygote.warm()}, b"")
    gc.collect()
    gc.freeze()
    while True:
        head, body = receive()
        send(*zygote.serve(head, body))
        zygote.clear_scratch()


class Zygote:
    """A warmed-up interpreter and the one source it grades with."""

    def __init__(self, plan: Mapping[str, Any], filter_: Filter, null: int) -> None:
        self._plan = plan
        self._filter = filter_
        self._null = null
        self._source: str = plan["source"]
        self._code: CodeType | None = None

    def warm(self) -> dict[str, Any]:
        """Parse the source in a child, then import what it imports; return what the host should know."""
        head, answer = self._fork(self._parse, 30.0)
        try:
            found = json.loads(answer)
            names = found["imports"]
        except (ValueError, KeyError, TypeError):
            error = answer.decode("utf-8", "replace")
            with suppress(ValueError, KeyError, TypeError):
                error = json.loads(answer)["error"]
            return {"error": error or f"The source could not be parsed ({head['ended']})."}
        # The child has compiled it without harm, and compiling runs nothing.
        self._code = call.compiled(self._source)
        return {"missing": [name for name in map(str, names) if not _preloaded(name)]}

    def serve(self, head: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Answer one request of the host."""
        return self._fork(lambda: self._answer(body), float(head["seconds"]))

    def clear_scratch(self) -> None:
        """Remove what a call has left; raises, and so ends this process and its scratch, where it cannot."""
        scratch = self._plan["scratch"]
        if scratch is None:
            return
        for entry in os.scandir(scratch):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108 - pathlib is not worth its import here

    def _parse(self) -> bytes:
        try:
            tree = ast.parse(self._source, call.FILE)
            call.compiled(self._source)
            found = {"error": lack} if (lack := source.lacks(tree)) else {"imports": source.imports(tree)}
        except BaseException as problem:  # boundary: a parser can be made to fail in many ways
            found = {"error": call.described(problem)}
        return json.dumps(found).encode()

    def _answer(self, body: bytes) -> bytes:
        assert self._code is not None
        return call.answer(self._code, self._source, body)

    def _fork(self, work: Any, seconds: float) -> tuple[dict[str, Any], bytes]:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            self._become_child(work, reading, writing)
        os.close(writing)
        try:
            ended, answer = _await(child, reading, seconds)
        finally:
            os.close(reading)
        return {"ended": ended}, answer

    def _become_child(self, work: Any, reading: int, writing: int) -> None:
        """Lock down, work, leave; never returns."""
        code = 70
        try:
            os.close(reading)
            for descriptor in (0, 1, 2):
                os.dup2(self._null, descriptor)
            confine.limit(self._plan)
            self._filter.install()
            _write(writing, work())
            code = 0
        finally:
            os._exit(code)


def receive() -> tuple[dict[str, Any], bytes]:
    """Return the host's next frame; end the process when there is none."""
    head = json.loads(_read(int.from_bytes(_read(4), "big")))
    return head, _read(int.from_bytes(_read(4), "big"))


def send(head: Mapping[str, Any], body: bytes) -> None:
    """Send one frame to the host."""
    text = json.dumps(head).encode()
    _write(HOST, len(text).to_bytes(4, "big") + text + len(body).to_bytes(4, "big") + body)


def _await(child: int, reading: int, seconds: float) -> tuple[str, bytes]:
    """Collect a child's answer and how it ended. The child is gone and reaped afterwards, come what may."""
    until, answer, ended = time.monotonic() + seconds, bytearray(), ""
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    poller.register(HOST, select.POLLIN)
    while not ended:
        left = until - time.monotonic()
        events = poller.poll(max(0.0, left) * 1000) if left > 0 else []
        if not events:
            ended = "deadline"
        elif events[0][0] == HOST and len(events) == 1:
            # The host sends nothing during a call: it hung up.
            os.kill(child, signal.SIGKILL)
            os._exit(0)
        elif piece := os.read(reading, 65536):
            answer += piece
            if len(answer) > MOST_ANSWER:
                ended = "flood"
        else:
            ended = "exit"
    # A child that only closed its pipe must not live on.
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if ended == "exit" and os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status)).name
    return ended, bytes(answer)


def _preloaded(name: str) -> bool:
    """Import a module for all calls to come; say whether it could be found."""
    parts = name.split(".")
    if parts[0] in _NOT_PRELOADED or any(part.startswith("__") for part in parts):
        return True
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    except BaseException:  # boundary: the child that needs it will say what is wrong
        return True
    return True


def _read(size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = os.read(HOST, min(size - len(found), 1 << 20))
        if not piece:
            os._exit(0)
        found += piece
    return bytes(found)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

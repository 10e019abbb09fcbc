"""A side of a bench as its driver sees it: a process that takes one step each time it is told to.

The other end of the pipe is `engine_work.orders` and `engine_work.say`. What a side does is its own module's.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.bench.engine_work import MARK

ROOT = Path(__file__).resolve().parents[2]


class BrokenSide(Exception):
    """A side ended before it was told to; the message is the end of what it said."""


class Side:
    """One side's process: `ready` is what it said when it was, `step` tells it to take one."""

    def __init__(
        self, module: str, python: Path, work: str, wheels: Path | None, environment: Mapping[str, str]
    ) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the side
        path = [str(wheels) if wheels else "", os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [str(python), "-m", f"tests.bench.{module}", work],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                "TOKENIZERS_PARALLELISM": "false",
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.ready = self.hear("ready")

    def step(self) -> dict[str, Any]:
        """Have one step taken and return its figures."""
        self._tell("step")
        return self.hear("step")

    def end(self) -> dict[str, Any]:
        """Have the process end by itself and return its last figures."""
        self._tell("end")
        return self.hear("end")

    def close(self) -> None:
        """Make sure that the process is gone."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # said by `_hear`
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()

    def hear(self, kind: str) -> dict[str, Any]:
        """Return the next facts of this kind; what the process prints beside is passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
                if facts.pop("kind") == kind:
                    return facts
        self.process.wait()
        self.errors.seek(0)
        raise BrokenSide(f"exit code {self.process.returncode}\n{self.errors.read()[-3000:]}")


@contextlib.contextmanager
def running(
    module: str,
    python: Path,
    work: str,
    *,
    wheels: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Side]:
    """Run a side until the block ends."""
    side = Side(module, python, work, wheels, environment)
    try:
        yield side
    finally:
        side.close()

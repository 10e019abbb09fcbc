"""Judgements already paid for: a judge's reply under the digest of all that was asked, one file each.

A file is written beside its name and renamed, so that processes may share the folder; what is lost or torn
is asked again. Called by `judge`; the worker's sweep forgets old ones.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.graders.json_text import compact

FOLDER = "judgements"
# Who asks for what right now, and how many want it: two requests for one judgement pay once.
_TURNS: dict[tuple[Path, str], tuple[threading.Lock, int]] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said, and the tokens it took."""

    content: str
    usage: dict[str, int]


def digest(url: str, request: Mapping[str, Any]) -> str:
    """Return what names a judgement: everything that could change it."""
    asked = json.dumps([url, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(asked.encode()).hexdigest()


@dataclass(slots=True)
class Judgements:
    """A folder of replies. `asking` lets one thread of this process at a time ask for one judgement."""

    folder: Path

    def get(self, key: str) -> Reply | None:
        """Return a reply that was kept, None where there is none to read."""
        try:
            kept = json.loads(self._path(key).read_text("utf-8"))
            return Reply(kept["content"], kept["usage"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; without room for it the next asking is paid again, and that is all."""
        path = self._path(key)
        working = path.with_name(f".{key}.{secrets.token_hex(4)}.tmp")
        kept = {"content": reply.content, "usage": reply.usage}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            working.write_bytes(compact(kept).encode("utf-8", "replace"))
            working.rename(path)
        except OSError:
            with suppress(OSError):
                working.unlink()

    @contextmanager
    def asking(self, key: str) -> Iterator[None]:
        """Hold off whoever wants the same judgement until the block ends: it will find the reply kept."""
        place = (self.folder, key)
        with _LOCK:
            turn, waiting = _TURNS.get(place, (threading.Lock(), 0))
            _TURNS[place] = (turn, waiting + 1)
        try:
            with turn:
                yield
        finally:
            with _LOCK:
                turn, waiting = _TURNS.pop(place)
                if waiting > 1:
                    _TURNS[place] = (turn, waiting - 1)

    def forget_old(self, *, before: float) -> int:
        """Remove replies kept before a moment and return how many. Units: seconds since the epoch."""
        gone = 0
        for path in self.folder.glob("*/*"):
            with suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

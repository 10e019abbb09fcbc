"""How hard a service may be asked: so many requests at once, at an even pace.

Both hold for the whole process, whoever asks: every job, request and thread that names the same service with
the same limit shares them. Called by `judge` and `endpoint`.
"""

import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache

# Users name endpoints: beyond so many of them the one not asked for longest begins anew.
_MOST_SERVICES = 1024
_LOCK = threading.Lock()


@dataclass(slots=True)
class Pace:
    """At most `per_minute` requests a minute, evenly spaced; 0 is no limit."""

    per_minute: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def wait(self) -> None:
        """Return when the caller's turn has come."""
        if not self.per_minute:
            return
        with self._lock:
            turn = max(self._free_at, time.monotonic())
            self._free_at = turn + 60.0 / self.per_minute
        time.sleep(max(0.0, turn - time.monotonic()))


def pace_of(service: str, per_minute: int) -> Pace:
    """Return the pace of a service, the same one for all who ask it."""
    with _LOCK:
        return _pace_of(service, per_minute)


def seats_of(service: str, at_once: int) -> threading.BoundedSemaphore:
    """Return what a request to a service holds while it lasts; there are `at_once` of it."""
    with _LOCK:
        return _seats_of(service, at_once)


@lru_cache(_MOST_SERVICES)
def _pace_of(service: str, per_minute: int) -> Pace:
    del service  # names the entry
    return Pace(per_minute)


@lru_cache(_MOST_SERVICES)
def _seats_of(service: str, at_once: int) -> threading.BoundedSemaphore:
    del service  # names the entry
    return threading.BoundedSemaphore(at_once)

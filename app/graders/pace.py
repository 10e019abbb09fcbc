"""How fast a service may be asked: an even pace of requests, shared by every thread."""

import threading
import time
from dataclasses import dataclass, field


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

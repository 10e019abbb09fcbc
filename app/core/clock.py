"""The one clock of the web and worker processes. The database has its own (`db.now()`), used inside SQL."""

import time


def now() -> float:
    """Return seconds since the epoch."""
    return time.time()


def seconds(moment: float) -> int:
    """Return whole unix seconds, the only form of time on the wire."""
    return int(moment)

"""One machine, two masters: how this process makes way for training, and training is not starved by it.

The decode thread runs at a low priority, which costs nothing while the machine is idle. While a job trains
here it computes on one processor thread, as threads that wait for each other at every product lose far more
than their share of a busy machine, and rests between its turns: the trainer's threads wait for the one whose
core was taken. Measured in docs/decisions/sharing-a-machine.md. Called by `__main__.py`.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

from app.core import clock
from app.core.db import Database
from app.services import heartbeats

NICENESS = 5
# Of the time, while a job trains here.
SHARE = 0.3


def make_way() -> None:
    """Lower this process's priority."""
    os.nice(NICENESS)
    # Where the system schedules sessions as groups, niceness counts inside one only; the group has its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def is_training_here(db: Database) -> bool:
    """Say whether a worker of this machine has a trainer at work."""
    with db.reading() as session:
        beats = heartbeats.list_heartbeats(session)
        return any(
            beat.part.partition(":")[0] == "worker"
            and beat.host == socket.gethostname()
            and clock.now() - beat.beat_at <= heartbeats.STALE_SECONDS
            and bool(beat.detail.get("trainers"))
            for beat in beats
        )

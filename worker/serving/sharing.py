"""One machine, two masters: how this process makes way for training, and training is not starved by it.

The decode thread runs at a low priority, which costs nothing while the machine is idle. While a job trains
here it computes on one processor thread, as threads that wait for each other at every product lose far more
than their share of a busy machine, and rests between its turns: the trainer's threads wait for the one whose
core was taken. Measured in docs/decisions/sharing-a-machine.md. Called by `__main__.py` and `house.py`.
"""

import os
from contextlib import suppress
from pathlib import Path

from app.core import clock
from app.core.db import Database
from app.services import heartbeats
from worker.engine import machine

NICENESS = 15
# Of the time, while a job trains here.
SHARE = 0.2
# So many seconds of work are done without rest while somebody waits for a first token, and rested for later.
CREDIT = 3.0


class Pace:
    """How long to rest after each turn, so that a share of the time is worked in the long run.

    Units: seconds. `owed` is the rest that work done so far asks for and has not had.
    """

    def __init__(self) -> None:
        self.owed = 0.0
        self.has_credit = True

    def rest(self, worked: float, share: float, *, hurry: bool) -> float:
        """Return how long to rest after a turn; none at all in a `hurry`, as long as there is credit.

        What is still owed is made up for in rests twice as long: an answer should not pause for seconds.
        """
        if share >= 1:
            self.owed, self.has_credit = 0.0, True
            return 0.0
        own = worked * (1 / share - 1)
        self.owed += own
        self.has_credit = self.owed < CREDIT * (1 / share - 1)
        return 0.0 if hurry and self.has_credit else min(self.owed, 2 * own)

    def rested(self, seconds: float) -> None:
        """Count time in which nothing was computed."""
        self.owed = max(0.0, self.owed - seconds)


def make_way() -> None:
    """Lower this process's priority."""
    os.nice(NICENESS)
    # Where the system schedules sessions as groups, niceness counts inside one only; the group has its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def is_training_here(db: Database) -> bool:
    """Say whether a worker of this machine has a trainer at work, be it in another container."""
    here = machine.identity()
    with db.reading() as session:
        beats = heartbeats.list_heartbeats(session)
        return any(
            beat.part.partition(":")[0] == "worker"
            and beat.detail.get("machine") == here
            and clock.now() - beat.beat_at <= heartbeats.STALE_SECONDS
            and bool(beat.detail.get("trainers"))
            for beat in beats
        )

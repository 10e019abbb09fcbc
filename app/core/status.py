"""The statuses of a job and the table of legal moves. Every state change consults it.

Source: OpenAI's job object (`validating_files … cancelled`, `pausing`, `paused`).
"""

from typing import Literal

JobStatus = Literal[
    "validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"
]

STATUSES: tuple[JobStatus, ...] = (
    "validating_files",
    "queued",
    "running",
    "pausing",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
)

TERMINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})

# What each move may start from and where it leads. A status standing in both keeps its row's status.
MOVES: dict[str, dict[JobStatus, JobStatus]] = {
    "claim": {"validating_files": "validating_files", "queued": "running", "running": "running"},
    "validated": {"validating_files": "queued"},
    "commit": {"running": "running", "pausing": "pausing"},
    "release": {"running": "queued"},
    "park": {"running": "paused", "pausing": "paused"},
    "succeed": {"running": "succeeded"},
    "fail": {"validating_files": "failed", "running": "failed", "pausing": "failed"},
    "cancel": {
        "validating_files": "cancelled",
        "queued": "cancelled",
        "running": "cancelled",
        "pausing": "cancelled",
        "paused": "cancelled",
    },
    "pause": {"queued": "paused", "running": "pausing"},
    "resume": {"paused": "queued"},
}


def may(move: str, status: JobStatus) -> bool:
    """Say whether `move` is legal from `status`."""
    return status in MOVES[move]


def origins(move: str) -> tuple[JobStatus, ...]:
    """Return the statuses `move` may start from, in a fixed order."""
    return tuple(status for status in STATUSES if status in MOVES[move])

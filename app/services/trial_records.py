"""What the last trial of a grader found: a small file in storage under its content's digest.

So a version shows what was learned about it before it was saved, and a run can warn before it starts. Called
by api and dashboard after a trial; old records go when the worker sweeps.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.core import clock
from app.core.errors import StorageFull
from app.core.storage import Storage
from app.graders.spec import Grader, dump
from app.services.saved_graders import digest

FOLDER = "trials"


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """The gist of one trial. `failed` names the probes that broke expectation, of `probes` kinds tried."""

    at: float
    probes: int
    failed: tuple[str, ...]
    answers: int
    missing: int
    mixed: int
    prompts: int


_NOTHING = TrialRecord(0.0, 0, (), 0, 0, 0, 0)


def keep(storage: Storage, *, project_id: str, grader: Grader, report: Mapping[str, Any]) -> None:
    """Record a trial over the one before; without room on the disk nothing is remembered.

    A trial without probes, or without answers, leaves standing what an earlier one found of them.
    """
    content, probes = dump(grader), report["probes"]
    found = find(storage, project_id=project_id, content=content) or _NOTHING
    if probes:
        failed = dict.fromkeys(probe["probe"] for probe in probes if probe["holds"] is False)
        found = replace(found, probes=len({probe["probe"] for probe in probes}), failed=tuple(failed))
    if report["n"]:
        found = replace(
            found,
            answers=report["n"],
            missing=report["rewards"]["missing"],
            mixed=report["prompts"]["mixed"],
            prompts=report["prompts"]["with_several_answers"],
        )
    with suppress(StorageFull):
        kept = asdict(replace(found, at=clock.now()))
        storage.write(_uri(project_id, content), [json.dumps(kept).encode()])


def find(storage: Storage, *, project_id: str, content: Mapping[str, Any]) -> TrialRecord | None:
    """Return what the last trial of a content found, None where it was never tried."""
    try:
        kept = json.loads(storage.path(_uri(project_id, content)).read_bytes())
        return TrialRecord(**kept | {"failed": tuple(kept["failed"])})
    except (OSError, ValueError, TypeError, LookupError):
        return None


def forget_old(storage: Storage, *, before: float) -> int:
    """Remove records older than a moment and return how many. Units: seconds since the epoch."""
    gone = 0
    for path in storage.path(FOLDER).glob("*/*"):
        with suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()
                gone += 1
    return gone


def _uri(project_id: str, content: Mapping[str, Any]) -> str:
    # Most graders are tried before they have a name, which changes no reward.
    nameless = {key: value for key, value in content.items() if key != "name"}
    return f"{FOLDER}/{project_id}/{digest(nameless)}"

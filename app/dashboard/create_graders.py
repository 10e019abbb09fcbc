"""Saved graders in the create form: which versions can be picked, and what their trials found.

A version whose probes broke expectation is not refused, but its run must be asked for twice. Called by
`create`.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.tables import GraderVersion, SavedGrader
from app.dashboard import format, grader_view
from app.dashboard.contexts import Chip, Choice, Readiness, ReadinessItem
from app.dashboard.visitor import Visitor
from app.services import saved_graders, trial_records
from app.services.trial_records import TrialRecord

MOST_VERSIONS = 100


def value_of(grader_id: str, version: int) -> str:
    """Return what the form calls a version."""
    return f"{grader_id}@{version}"


def reference_of(value: str) -> dict[str, object]:
    """Return the wire's grader that stands for a version; a value nobody offered is left to the validator."""
    grader_id, _, version = value.partition("@")
    is_number = version.isdecimal() and len(version) < 10
    return {"type": "saved", "id": grader_id, "version": int(version) if is_number else version}


def offered(
    session: Session, context: Context, visitor: Visitor, chosen: str, accepted: Sequence[str]
) -> tuple[tuple[Choice, ...], tuple[Readiness, ...]]:
    """Return the versions to pick from, and for each what is known of it."""
    rows = saved_graders.all_versions(session, project_id=visitor.project_id, limit=MOST_VERSIONS)
    records = {
        version.id: trial_records.find(
            context.storage, project_id=visitor.project_id, content=version.content
        )
        for _, version in rows
    }
    choices = tuple(
        Choice(value_of(saved.id, version.version), f"{saved.name} · version {version.version}")
        for saved, version in rows
    )
    return choices, tuple(
        _readiness(saved, version, rows, records, chosen, accepted) for saved, version in rows
    )


def objection(readiness: Sequence[Readiness], chosen: str) -> str | None:
    """Return why a chosen version should not be trained with, unless that was accepted."""
    for one in readiness:
        if one.value == chosen and one.must_accept and not one.is_accepted:
            return (
                f"{one.items[0].words} Choose a version that passes, or say below that you accept it, "
                "and start again."
            )
    return None


def _readiness(
    saved: SavedGrader,
    version: GraderVersion,
    rows: Sequence[tuple[SavedGrader, GraderVersion]],
    records: Mapping[str, TrialRecord | None],
    chosen: str,
    accepted: Sequence[str],
) -> Readiness:
    value, record = value_of(saved.id, version.version), records[version.id]
    better = next(
        (
            other.version
            for owner, other in rows
            if owner.id == saved.id
            and other.version > version.version
            and (found := records[other.id]) is not None
            and found.probes
            and not found.failed
        ),
        None,
    )
    return Readiness(
        value=value,
        is_chosen=value == chosen,
        items=_items(record),
        lab_href=f"/graders/{saved.id}?v={version.version}",
        better=None if better is None else Choice(value_of(saved.id, better), f"Use version {better}"),
        must_accept=record is not None and bool(record.failed),
        is_accepted=value in accepted,
    )


def _items(record: TrialRecord | None) -> tuple[ReadinessItem, ...]:
    if record is None:
        untried = Chip("open", "Not tried", "neutral", "hollow")
        return (ReadinessItem(untried, "Nobody has run probes on this version."),)
    items = []
    if record.failed:
        chip = Chip("failed", "Probes failed", "warn", "solid")
        told = f"{len(record.failed)} of {record.probes} probes failed: {grader_view.failed_probes(record)}."
        items.append(ReadinessItem(chip, told))
    elif record.probes:
        passed = Chip("passed", "Probes passed", "good", "solid")
        items.append(ReadinessItem(passed, f"All {record.probes} probes are as expected."))
    if record.prompts:
        is_enough = record.mixed >= grader_view.LEAST_MIXED * record.prompts
        chip = Chip("passed" if is_enough else "failed", "Signal", "good" if is_enough else "warn", "solid")
        told = f"{record.mixed} of {format.plural(record.prompts, 'prompt')} mixed in its last trial"
        items.append(ReadinessItem(chip, f"{told}{'.' if is_enough else ': almost no learning signal.'}"))
    if record.missing:
        chip = Chip("failed", "Grader errors", "warn", "solid")
        items.append(ReadinessItem(chip, f"{format.plural(record.missing, 'answer')} could not be graded."))
    return tuple(items)

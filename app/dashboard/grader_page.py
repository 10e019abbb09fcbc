"""What stands around the lab's form: choices, variables, versions and what changed, the sandbox.

Reads what the page shows and runs nothing, but for the sandbox's self-test, once a process. Called by
`graders`.
"""

import json
from collections.abc import Mapping
from difflib import unified_diff
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import InvalidRequest, NotFound
from app.core.providers import Providers, ProvidersError
from app.core.settings import Settings
from app.core.tables import SavedGrader
from app.dashboard import format, grader_form
from app.dashboard.contexts import Choice
from app.dashboard.grader_contexts import (
    DiffLine,
    LabPage,
    SavedView,
    VariableRow,
    VersionDiff,
    VersionRow,
)
from app.dashboard.grader_lab import Lab, first_item
from app.dashboard.visitor import Visitor
from app.graders.python import limits_of
from app.graders.sandbox.level import SandboxUnavailable, choose
from app.graders.sandbox.paths import OFFERED, installed
from app.services import files, jobs, models, saved_graders

MOST_CHOICES = 100
_VARIABLES = 24
_EXAMPLE = 72
_STARTED = ("running", "pausing", "paused", "succeeded", "failed", "cancelled")
_LABELS = {
    "name": "Name",
    "more": "Other keys",
    "file": "File",
    "right": "Right answer",
    "fresh": "Fresh answers",
    "job": "Job",
    "step": "Step",
    "answers": "Answers",
    "form": "The grader",
    **{one.name: one.label for fields in grader_form.FIELDS.values() for one in fields},
}


def page_of(session: Session, context: Context, visitor: Visitor, lab: Lab) -> LabPage:
    """Return the lab as its template wants it."""
    saved, version = lab.saved, lab.version
    is_changed = version is not None and not _is_unchanged(lab)
    title = "New grader" if saved is None else saved.name
    variables, note = _variables(session, context, visitor, lab)
    following = 1 if saved is None else saved.latest_version + 1
    fields = grader_form.FIELDS[lab.kind]
    served = _served(session, visitor)
    with_file = f"&file={lab.values['file']}" if lab.values["file"] else ""
    return LabPage(
        frame=visitor.frame(session, title=title, section="graders"),
        kind=lab.kind,
        kind_label=grader_form.TYPES[lab.kind],
        kinds=tuple(
            (kind, label, f"/graders/new?type={kind}{with_file}") for kind, label in grader_form.TYPES.items()
        ),
        fields=tuple(one for one in fields if one.how != "more" or lab.values[one.name]),
        more=None if lab.kind == grader_form.JSON else grader_form.MORE,
        values=lab.values,
        errors=lab.errors,
        summary=tuple((key, f"{_LABELS.get(key, key)}: {said}") for key, said in lab.errors.items()),
        action="/graders/new" if saved is None else f"/graders/{saved.id}",
        saved=None
        if saved is None or version is None
        else SavedView(
            saved.id,
            version.version,
            saved.latest_version,
            version.sha256,
            f"version {version.version} of {saved.latest_version}"
            + (", unsaved changes" if is_changed else ""),
        ),
        save_label="Save grader" if saved is None else f"Save version {following}",
        files=_files(session, visitor),
        jobs=_jobs(session, visitor),
        models=tuple(Choice(name, name) for name in served),
        judges=tuple(dict.fromkeys((*_judges(context.settings), *served))),
        variables=variables,
        variables_note=note,
        results=lab.results,
        versions=() if saved is None else _versions(session, visitor, saved),
        diff=_diff(session, visitor, lab),
        limits=_limits(context.settings),
        sandbox=sandbox_of(context.settings),
        packages=_packages(context.settings),
    )


def _is_unchanged(lab: Lab) -> bool:
    assert lab.version is not None
    try:
        return grader_form.content_of(lab.kind, lab.values) == lab.version.content
    except grader_form.Refused:
        return False


def _variables(
    session: Session, context: Context, visitor: Visitor, lab: Lab
) -> tuple[tuple[VariableRow, ...], str]:
    answer = VariableRow("sample.output_text", "the answer")
    try:
        item = first_item(session, context, visitor, lab.values)
    except (InvalidRequest, NotFound) as problem:
        return (answer,), problem.message
    if item is None:
        return (answer,), "Choose a file, and its keys stand here."
    found = [VariableRow(path, example) for path, example in _paths(item, "item")]
    if lab.values["json"]:
        answer = VariableRow("sample.output_json", "the answer, read as JSON")
    return (*found[:_VARIABLES], answer), "From the first row."


def _paths(value: Any, path: str) -> list[tuple[str, str]]:
    """Return every path to a plain value inside, at most two levels down."""
    depth = path.count(".") + path.count("[")
    if isinstance(value, dict) and value and depth < 3:
        return [one for key, inner in value.items() for one in _paths(inner, f"{path}.{key}")]
    if isinstance(value, list) and value and depth < 3:
        return _paths(value[0], f"{path}[0]")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [] if path == "item" else [(path, text if len(text) <= _EXAMPLE else text[:_EXAMPLE] + "…")]


def _files(session: Session, visitor: Visitor) -> tuple[Choice, ...]:
    found = files.list_files(session, project_id=visitor.project_id, purpose="fine-tune", limit=MOST_CHOICES)
    return tuple(
        Choice(file.id, f"{file.filename} · {format.size(file.bytes)} · {file.id[:12]}…")
        for file in found.rows
    )


def _jobs(session: Session, visitor: Visitor) -> tuple[Choice, ...]:
    found = jobs.list_jobs(session, project_id=visitor.project_id, limit=MOST_CHOICES, statuses=_STARTED)
    return tuple(
        Choice(job.id, f"{job.model}{f' : {job.suffix}' if job.suffix else ''} · step {job.step}")
        for job in found.rows
    )


def _served(session: Session, visitor: Visitor) -> list[str]:
    found = models.list_models(session, project_id=visitor.project_id)
    return [model.id for model in found if model.stopped_at is None][:MOST_CHOICES]


def _judges(settings: Settings) -> tuple[str, ...]:
    try:
        return Providers.read(settings.root).models
    except ProvidersError:
        return ()


def _versions(session: Session, visitor: Visitor, saved: SavedGrader) -> tuple[VersionRow, ...]:
    found = saved_graders.list_versions(
        session, project_id=visitor.project_id, grader_id=saved.id, limit=MOST_CHOICES
    )
    used = saved_graders.uses(session, project_id=visitor.project_id).get(saved.id, [])
    return tuple(
        VersionRow(
            number=version.version,
            sha256=version.sha256,
            created_at=version.created_at,
            href=f"/graders/{saved.id}?v={version.version}",
            compare_href=f"/graders/{saved.id}?v={version.version}&against={version.version - 1}#changes"
            if version.version > 1
            else None,
            jobs=tuple(
                Choice(f"/finetune/{use.job_id}", use.name) for use in used if use.version == version.version
            ),
        )
        for version in found.rows
    )


def _diff(session: Session, visitor: Visitor, lab: Lab) -> VersionDiff | None:
    if lab.saved is None or lab.version is None or not lab.against or lab.against == lab.version.version:
        return None
    earlier = saved_graders.get_version(
        session, project_id=visitor.project_id, grader_id=lab.saved.id, version=lab.against
    )
    before, after = _as_text(earlier.content), _as_text(lab.version.content)
    lines = list(unified_diff(before, after, lineterm="", n=3))[2:]
    kinds = {"+": "added", "-": "gone"}
    shown = tuple(DiffLine(kinds.get(line[:1], "same"), line) for line in lines if not line.startswith("@@"))
    added = sum(line.kind == "added" for line in shown)
    gone = sum(line.kind == "gone" for line in shown)
    summary = f"{format.plural(added, 'line')} added, {gone} taken away"
    return VersionDiff(earlier.version, lab.version.version, summary, shown)


def _as_text(content: Mapping[str, Any]) -> list[str]:
    """Return a grader as lines to compare: JSON, but sources as they are written."""
    sources: list[str] = []

    def without(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("type") == "python":
            sources.extend([f"# {place or 'source'}", *str(value["source"]).splitlines()])
            value = {key: inner for key, inner in value.items() if key != "source"}
        return {key: without(inner, key) for key, inner in value.items()}

    text = json.dumps(without(dict(content), ""), indent=2, ensure_ascii=False)
    return [*sources, *text.splitlines()]


def sandbox_of(settings: Settings) -> str:
    """Return what this process's sandbox is; found out once, by attacking it."""
    return _sandbox(settings.grader_packages.expanduser().resolve(), settings.root)


@lru_cache(maxsize=4)
def _sandbox(packages: Path, private: Path) -> str:
    try:
        return choose(packages=packages, private=private).description
    except SandboxUnavailable as problem:
        return problem.message


def _limits(settings: Settings) -> str:
    limits = limits_of(settings)
    memory, scratch = format.size(limits.memory_bytes), format.size(limits.scratch_bytes)
    return (
        f"A call may take {format.duration(limits.seconds)} and {memory} of memory; at level A it may write "
        f"{scratch} of scratch files. No network, no other process."
    )


def _packages(settings: Settings) -> str:
    there = installed(settings.grader_packages.expanduser().resolve())
    if not there:
        return "none but the standard library; `make graders` installs the usual ones"
    told = ", ".join(f"{name} {version}" for name, version in there.items())
    missing = [name for name in OFFERED if name not in there]
    return told + (f". Not here: {', '.join(missing)} (`make graders GRADERS=all`)" if missing else "")

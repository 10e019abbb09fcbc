"""Saved graders: a name, and versions that never change.

`resolve` puts a version's content wherever a request says `{"type": "saved", …}`, before anything is
parsed; a job keeps the content and which version it was. Called by jobs, api and dashboard.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import NotFound
from app.core.ids import new_id
from app.core.page import Page, read_page
from app.core.refusals import invalid, missing, refuse_unknown, wrong_type
from app.core.tables import GraderVersion, Job, SavedGrader
from app.graders.spec import Grader, dump

MOST_NAME = 255


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request's grader with every saved one filled in, and which versions those were, by their param."""

    grader: object
    saved: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Use:
    """A job that began with a version of a saved grader."""

    job_id: str
    name: str
    version: int


def create_grader(
    session: Session, *, project_id: str, name: str, grader: Grader
) -> tuple[SavedGrader, GraderVersion]:
    """Save a grader under a name, as its version 1. Raises: InvalidRequest."""
    now = clock.now()
    saved = SavedGrader(
        id=new_id("grader"),
        project_id=project_id,
        name=_name(name),
        latest_version=0,
        created_at=now,
        updated_at=now,
    )
    session.add(saved)
    session.flush()
    return saved, _add(session, saved, grader)


def get_grader(session: Session, *, project_id: str, grader_id: str) -> SavedGrader:
    """Return a saved grader of the project. Raises: NotFound."""
    saved = session.get(SavedGrader, grader_id)
    if saved is None or saved.project_id != project_id:
        raise NotFound(f"No such grader: {grader_id}", param="id")
    return saved


def list_graders(
    session: Session, *, project_id: str, limit: int, after: str | None = None
) -> Page[tuple[SavedGrader, GraderVersion]]:
    """Return the project's saved graders with their latest versions, newest first."""
    keys = [SavedGrader.created_at, SavedGrader.id]
    query = select(SavedGrader).where(SavedGrader.project_id == project_id)
    page = read_page(session, query, keys=keys, id_column=SavedGrader.id, limit=limit, after=after)
    newest = session.scalars(
        select(GraderVersion)
        .join(SavedGrader, SavedGrader.id == GraderVersion.grader_id)
        .where(
            SavedGrader.id.in_([saved.id for saved in page.rows]),
            GraderVersion.version == SavedGrader.latest_version,
        )
    )
    by_grader = {version.grader_id: version for version in newest}
    return Page([(saved, by_grader[saved.id]) for saved in page.rows], page.has_more)


def rename_grader(session: Session, *, project_id: str, grader_id: str, name: str) -> SavedGrader:
    """Give a saved grader another name. Raises: NotFound, InvalidRequest."""
    saved = get_grader(session, project_id=project_id, grader_id=grader_id)
    saved.name, saved.updated_at = _name(name), clock.now()
    session.flush()
    return saved


def delete_grader(session: Session, *, project_id: str, grader_id: str) -> None:
    """Delete a saved grader with its versions; jobs keep the content they began with. Raises: NotFound."""
    session.delete(get_grader(session, project_id=project_id, grader_id=grader_id))
    session.flush()


def add_version(session: Session, *, project_id: str, grader_id: str, grader: Grader) -> GraderVersion:
    """Save a grader as the next version; what the latest one says already is no new version.

    Raises: NotFound.
    """
    # Locked, or two writers would take one number.
    query = select(SavedGrader).where(SavedGrader.id == grader_id, SavedGrader.project_id == project_id)
    saved = session.scalars(query.with_for_update()).one_or_none()
    if saved is None:
        raise NotFound(f"No such grader: {grader_id}", param="id")
    latest = get_version(session, project_id=project_id, grader_id=grader_id)
    return latest if latest.sha256 == digest(dump(grader)) else _add(session, saved, grader)


def list_versions(
    session: Session, *, project_id: str, grader_id: str, limit: int, after: str | None = None
) -> Page[GraderVersion]:
    """Return a saved grader's versions, newest first. Raises: NotFound."""
    saved = get_grader(session, project_id=project_id, grader_id=grader_id)
    query = select(GraderVersion).where(GraderVersion.grader_id == saved.id)
    keys = [GraderVersion.version]
    return read_page(session, query, keys=keys, id_column=GraderVersion.id, limit=limit, after=after)


def all_versions(session: Session, *, project_id: str, limit: int) -> list[tuple[SavedGrader, GraderVersion]]:
    """Return the project's saved graders with each of their versions, the graders changed last first."""
    query = (
        select(SavedGrader, GraderVersion)
        .join(GraderVersion, GraderVersion.grader_id == SavedGrader.id)
        .where(SavedGrader.project_id == project_id)
        .order_by(SavedGrader.updated_at.desc(), SavedGrader.id, GraderVersion.version.desc())
        .limit(limit)
    )
    return [(saved, version) for saved, version in session.execute(query)]


def get_version(
    session: Session, *, project_id: str, grader_id: str, version: int | None = None
) -> GraderVersion:
    """Return one version of a saved grader, the latest unless told. Raises: NotFound."""
    saved = get_grader(session, project_id=project_id, grader_id=grader_id)
    wanted = saved.latest_version if version is None else version
    query = select(GraderVersion).where(GraderVersion.grader_id == saved.id, GraderVersion.version == wanted)
    found = session.scalars(query).one_or_none()
    if found is None:
        there = saved.latest_version
        raise NotFound(
            f"Grader {grader_id} has no version {wanted}; there are 1 to {there}.", param="version"
        )
    return found


def uses(session: Session, *, project_id: str) -> dict[str, list[Use]]:
    """Return the jobs that recorded a saved grader, newest first, by the grader's id."""
    query = (
        select(Job.id, Job.model, Job.suffix, Job.saved_graders)
        .where(Job.project_id == project_id, Job.saved_graders.is_not(None))
        .order_by(Job.created_at.desc())
    )
    found: dict[str, list[Use]] = {}
    for job_id, model, suffix, saved in session.execute(query):
        name = f"{model} : {suffix}" if suffix else model
        for version in {(one["id"], one["version"]): one for one in saved.values()}.values():
            found.setdefault(version["id"], []).append(Use(job_id, name, version["version"]))
    return found


def resolve(session: Session, *, project_id: str, grader: object, param: str) -> Resolved:
    """Return a request's grader with the content of every saved one in its place.

    Raises: InvalidRequest when there is no such grader or version.
    """
    saved: dict[str, dict[str, Any]] = {}

    def filled(value: object, place: str) -> object:
        if not isinstance(value, Mapping):
            return value
        if value.get("type") == "saved":
            version = _referred(session, project_id, value, place)
            saved[place] = {"id": version.grader_id, "version": version.version, "sha256": version.sha256}
            return version.content
        parts = value.get("graders")
        if value.get("type") == "multi" and isinstance(parts, Mapping):
            if isinstance(parts.get("type"), str):  # a single grader, where the SDK's type wants one
                return {**value, "graders": filled(parts, f"{place}.graders")}
            return {
                **value,
                "graders": {key: filled(part, f"{place}.graders.{key}") for key, part in parts.items()},
            }
        if value.get("type") == "multi" and isinstance(parts, list):
            return {
                **value,
                "graders": [filled(part, f"{place}.graders[{i}]") for i, part in enumerate(parts)],
            }
        return value

    return Resolved(filled(grader, param), saved)


def _referred(session: Session, project_id: str, value: Mapping[str, Any], param: str) -> GraderVersion:
    refuse_unknown(value, ("type", "id", "version"), f"{param}.")
    grader_id, version = value.get("id"), value.get("version")
    if grader_id is None:
        raise missing(f"{param}.id")
    if not isinstance(grader_id, str):
        raise wrong_type("a string", grader_id, f"{param}.id")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
        raise wrong_type("an integer", version, f"{param}.version")
    try:
        return get_version(session, project_id=project_id, grader_id=grader_id, version=version)
    except NotFound as problem:
        # The request is at fault, not its address.
        raise invalid(problem.message.rstrip("."), f"{param}.{problem.param}") from None


def _add(session: Session, saved: SavedGrader, grader: Grader) -> GraderVersion:
    now, content = clock.now(), dump(grader)
    saved.latest_version, saved.updated_at = saved.latest_version + 1, now
    version = GraderVersion(
        id=new_id("grader_version"),
        grader_id=saved.id,
        version=saved.latest_version,
        sha256=digest(content),
        content=content,
        created_at=now,
    )
    session.add(version)
    session.flush()
    return version


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a grader's compact normal form, which names its content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _name(name: str) -> str:
    if not 1 <= len(name.strip()) <= MOST_NAME:
        raise invalid(f"it must be 1 to {MOST_NAME} characters long", "name")
    return name.strip()

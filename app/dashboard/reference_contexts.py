"""What the API reference's template gets: see `contexts.py`, whose frame it shares."""

from dataclasses import dataclass

from app.dashboard.contexts import Frame


@dataclass(frozen=True, slots=True)
class ReferenceKey:
    """A parameter, or a key of a body or an object: where it stands and what it may hold."""

    name: str
    place: str
    is_required: bool
    kind: str
    note: str


@dataclass(frozen=True, slots=True)
class ReferenceRoute:
    """One route of the API."""

    method: str
    path: str
    about: str
    keys: tuple[ReferenceKey, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class ReferenceGroup:
    """The routes of one noun."""

    anchor: str
    title: str
    routes: tuple[ReferenceRoute, ...]


@dataclass(frozen=True, slots=True)
class ReferenceObject:
    """One object of the wire."""

    name: str
    about: str
    keys: tuple[ReferenceKey, ...]


@dataclass(frozen=True, slots=True)
class ReferencePage:
    """Every route and object of the API."""

    frame: Frame
    base_url: str
    groups: tuple[ReferenceGroup, ...]
    objects: tuple[ReferenceObject, ...]

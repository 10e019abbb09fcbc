"""What the templates of models get: the list, one model with its lineage, its serving and its exports."""

from dataclasses import dataclass

from app.dashboard.contexts import Chip, Fact, Frame
from app.dashboard.job_contexts import Verdict


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model in the list."""

    id: str
    href: str
    kind: str
    base: str
    job_id: str | None
    note: str
    created_at: float


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """Base models, tuned models and checkpoints."""

    frame: Frame
    base: tuple[ModelRow, ...]
    tuned: tuple[ModelRow, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One step of a model's lineage: what it is, its name, its hash or version, where it can be read."""

    label: str
    name: str
    mark: str
    href: str | None


@dataclass(frozen=True, slots=True)
class Sibling:
    """A model of the same job."""

    id: str
    href: str
    step: int | None
    valid: float | None
    note: str
    is_this: bool


@dataclass(frozen=True, slots=True)
class ServingView:
    """Whether the model answers, and how to ask it."""

    chip: Chip
    words: str
    can_stop: bool
    can_load: bool
    base_url: str
    curl: str
    python: str


@dataclass(frozen=True, slots=True)
class ExportRow:
    """One form of the model: `percent` is there while it is made, `reason` when it is not offered."""

    form: str
    title: str
    what: str
    chip: Chip | None
    stage: str
    percent: int | None
    bytes: int | None
    seconds: float | None
    sha256: str | None
    parity: str
    reason: str | None
    href: str | None
    can_build: bool
    build_verb: str
    delete_verb: str


@dataclass(frozen=True, slots=True)
class ExportsView:
    """A model's exports; the page asks for them again while one is being made."""

    frame: Frame
    address: str
    rows: tuple[ExportRow, ...]
    is_building: bool


@dataclass(frozen=True, slots=True)
class ModelPage:
    """One model."""

    frame: Frame
    id: str
    address: str
    kind: str
    facts: tuple[Fact, ...]
    lineage: tuple[Link, ...]
    verdict: Verdict | None
    siblings: tuple[Sibling, ...]
    serving: ServingView
    exports: ExportsView | None
    can_delete: bool
    playground: str

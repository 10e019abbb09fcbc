"""What the graders' templates get: the library, the lab with its form, and the lab's results.

As in `contexts`: no queries and no decisions here. `graders`, `grader_form` and `grader_view` build these.
"""

from dataclasses import dataclass

from app.dashboard.contexts import Chip, Choice, Fact, Frame


@dataclass(frozen=True, slots=True)
class LibraryRow:
    """A saved grader in the list; `tried` says what its last trial found."""

    id: str
    name: str
    kind: str
    version: int
    tried: Chip
    jobs: int
    updated_at: float


@dataclass(frozen=True, slots=True)
class LibraryPage:
    """The project's saved graders."""

    frame: Frame
    rows: tuple[LibraryRow, ...]
    next_href: str | None
    sandbox: str


@dataclass(frozen=True, slots=True)
class LabField:
    """A place of the form. `how`: source, template, text, json, more, line, number, choice, model."""

    name: str
    label: str
    how: str
    help: str
    choices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class VariableRow:
    """What a template or a source may read, with its value in the first row of the file."""

    path: str
    example: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a saved grader, and which jobs recorded it."""

    number: int
    sha256: str
    created_at: float
    href: str
    compare_href: str | None
    jobs: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a comparison: `kind` is added, gone or same."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What changed between two versions."""

    before: int
    after: int
    summary: str
    lines: tuple[DiffLine, ...]


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a source around an error."""

    number: int
    text: str
    is_wrong: bool


@dataclass(frozen=True, slots=True)
class LabError:
    """Where a grader breaks: the line, the traceback, the row that caused it, what to change."""

    heading: str
    traceback: str
    line: int | None
    excerpt: tuple[SourceLine, ...]
    row: str
    item: str
    suggestion: str


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One thing that was looked at."""

    name: str
    chip: Chip
    detail: str


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One kind of probe over the rows it was tried on: the worst of them."""

    name: str
    reward: float | None
    chip: Chip
    note: str
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram, in the picture's own units."""

    x: float
    width: float
    height: float
    label: str
    count: int


@dataclass(frozen=True, slots=True)
class PartBar:
    """The reward of one part of a multi grader; `width` is in hundredths."""

    name: str
    reward: float | None
    width: float


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One graded answer."""

    row: int
    reward: float | None
    text: str
    parts: tuple[PartBar, ...]
    message: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """A kind of failure with an example."""

    name: str
    whose: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the rewards of real answers are like."""

    reading: str
    bars: tuple[Bar, ...]
    axis: tuple[str, str]
    signal: str
    has_signal: bool
    facts: tuple[Fact, ...]
    errors: tuple[ErrorRow, ...]
    samples: tuple[SampleRow, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class LabResults:
    """The right side of the lab: what was run so far. `problem` is why nothing could be."""

    problem: str = ""
    findings: tuple[FindingRow, ...] = ()
    error: LabError | None = None
    probes: tuple[ProbeRow, ...] = ()
    probes_note: str = ""
    probes_failed: int = 0
    outputs: Outputs | None = None
    latency: str = ""


@dataclass(frozen=True, slots=True)
class SavedView:
    """The saved grader a lab is open on."""

    id: str
    version: int
    latest: int
    sha256: str
    note: str


@dataclass(frozen=True, slots=True)
class LabPage:
    """The grader lab."""

    frame: Frame
    kind: str
    kind_label: str
    kinds: tuple[tuple[str, str, str], ...]
    fields: tuple[LabField, ...]
    more: LabField | None
    values: dict[str, str]
    errors: dict[str, str]
    summary: tuple[tuple[str, str], ...]
    action: str
    saved: SavedView | None
    save_label: str
    files: tuple[Choice, ...]
    jobs: tuple[Choice, ...]
    models: tuple[Choice, ...]
    judges: tuple[str, ...]
    variables: tuple[VariableRow, ...]
    variables_note: str
    results: LabResults
    versions: tuple[VersionRow, ...]
    diff: VersionDiff | None
    limits: str
    sandbox: str
    packages: str

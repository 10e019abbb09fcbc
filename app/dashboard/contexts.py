"""What templates get: one frozen dataclass per page, and its parts. A template may use nothing else.

No queries and no decisions here: the noun's module builds these from services, format.py words them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """What every page of a signed-in person shows around its content."""

    title: str
    section: str
    project: str
    csrf: str
    theme: str
    machine: str
    machine_note: str
    is_machine_down: bool


@dataclass(frozen=True, slots=True)
class Chip:
    """A status in words, with its tone (`good`, `bad`, `info`, `violet`, neutral) and its dot's shape."""

    status: str
    words: str
    tone: str
    shape: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A label and its value; `mono` for ids, `href` for what can be opened, `moment` for times."""

    label: str
    value: str
    mono: bool = False
    href: str | None = None
    moment: float | None = None
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a prompt."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of a select."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class FileField:
    """A place of the form where a file is chosen or uploaded."""

    key: str
    label: str
    help: str
    is_required: bool


@dataclass(frozen=True, slots=True)
class NumberField:
    """A hyperparameter of the form."""

    name: str
    label: str
    help: str


@dataclass(frozen=True, slots=True)
class ReadinessItem:
    """One thing that is known of a grader before a run."""

    chip: Chip
    words: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is known of a saved version. `better` is a later one that passes; `must_accept`: probes failed."""

    value: str
    is_chosen: bool
    items: tuple[ReadinessItem, ...]
    lab_href: str
    better: Choice | None
    must_accept: bool
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class CreatePage:
    """The form that starts a run, with what was typed and what was wrong with it."""

    frame: Frame
    models: tuple[Choice, ...]
    files: tuple[Choice, ...]
    file_fields: tuple[FileField, ...]
    numbers: tuple[NumberField, ...]
    are_numbers_open: bool
    values: dict[str, str]
    errors: dict[str, str]
    summary: tuple[tuple[str, str], ...]
    templates_json: str
    templates: tuple[Choice, ...]
    formats: tuple[Choice, ...]
    saved_graders: tuple[Choice, ...]
    readiness: tuple[Readiness, ...]
    sandbox: str


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file in the list."""

    id: str
    name: str
    purpose: str
    bytes: int
    created_at: float


@dataclass(frozen=True, slots=True)
class FilesPage:
    """The project's files."""

    frame: Frame
    rows: tuple[FileRow, ...]
    next_href: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ItemView:
    """One previewed line of a file."""

    line: int
    turns: tuple[Turn, ...]
    rest: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class FilePage:
    """One file with its first rows."""

    frame: Frame
    file: FileRow
    facts: tuple[Fact, ...]
    items: tuple[ItemView, ...]
    preview_note: str
    can_tune: bool


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key in the list; its secret is not known here."""

    id: str
    name: str
    masked: str
    created_at: float
    last_used_at: float | None


@dataclass(frozen=True, slots=True)
class KeysPage:
    """The project's API keys; `secret` is set once, right after a key was made."""

    frame: Frame
    rows: tuple[KeyRow, ...]
    secret: str | None
    base_url: str
    error: str | None
    name: str


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """A webhook endpoint in the list."""

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    chip: Chip
    reason: str | None


@dataclass(frozen=True, slots=True)
class WebhooksPage:
    """The project's webhook endpoints, and the form that adds one."""

    frame: Frame
    rows: tuple[EndpointRow, ...]
    event_types: tuple[str, ...]
    values: dict[str, str]
    chosen: tuple[str, ...]
    errors: dict[str, str]


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One delivery of a webhook."""

    id: str
    event: str
    object_id: str
    chip: Chip
    attempts: int
    status_code: int | None
    latency: float | None
    error: str | None
    created_at: float
    next_at: float | None


@dataclass(frozen=True, slots=True)
class EndpointPage:
    """One endpoint with its deliveries; `secret` is set once, right after it was added."""

    frame: Frame
    endpoint: EndpointRow
    hint: str
    facts: tuple[Fact, ...]
    deliveries: tuple[DeliveryRow, ...]
    secret: str | None


@dataclass(frozen=True, slots=True)
class LoginPage:
    """The page that says how to sign in, or asks for one click to do it."""

    theme: str
    token: str | None
    next: str
    error: str | None


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """What happened, why, and what to do."""

    frame: Frame | None
    theme: str
    status: int
    heading: str
    message: str
    advice: str
    request_id: str | None

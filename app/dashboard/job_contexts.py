"""What the templates of jobs get: the list, one job with its parts, the stream's fragments, rollouts.

The other pages' dataclasses, and the parts all pages share, stand in contexts.py.
"""

from dataclasses import dataclass

from app.dashboard.contexts import Chip, Fact, Frame, Turn


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job in the list."""

    id: str
    model: str
    suffix: str | None
    chip: Chip
    created_at: float
    spark: str | None
    spark_end: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A mean with its 95% interval, all shares of 1."""

    label: str
    mean: float
    low: float
    high: float
    is_tuned: bool
    y: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer in one card: `figure` is None until something was measured."""

    label: str
    base: str | None
    tuned: str | None
    sentence: str
    detail: str
    is_provisional: bool
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class ChartRow:
    """One row of the chart's table twin."""

    step: int
    train: float | None
    valid: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class RewardChart:
    """The reward chart: its points as JSON for the browser, its reading and table for everyone."""

    points_json: str
    point_count: int
    last_valid: str
    reading: str
    rows: tuple[ChartRow, ...]
    waiting: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a whole, as a segment of a meter. `x` and `width` are percentages."""

    kind: str
    label: str
    text: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Meter:
    """A whole in parts, with the sentence that reads it."""

    title: str
    reading: str
    parts: tuple[Part, ...]
    warning: str | None


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A kept checkpoint."""

    id: str
    model_id: str
    step: int
    valid: float | None
    train: float | None
    tokens: float | None
    why: str
    created_at: float
    href: str
    playground: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """A line of the timeline."""

    id: str
    seq: int
    kind: str
    level: str
    words: str
    at: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed, and what to do about it."""

    code: str
    message: str
    param: str | None
    advice: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A hyperparameter: as it was asked for and the number it became."""

    name: str
    asked: str
    resolved: str


@dataclass(frozen=True, slots=True)
class JobView:
    """One job as the detail side of the jobs page shows it; the live stream renders parts of the same."""

    id: str
    name: str
    chip: Chip
    tab: str
    is_over: bool
    can_pause: bool
    can_resume: bool
    can_cancel: bool
    pause_note: str
    cancel_note: str
    seq: int
    note: str | None
    failure: Failure | None
    verdict: Verdict
    chart: RewardChart
    meters: tuple[Meter, ...]
    latest: tuple[Fact, ...]
    checkpoints: tuple[CheckpointRow, ...]
    events: tuple[EventRow, ...]
    more_events: str | None
    facts: tuple[Fact, ...]
    graders: tuple[Fact, ...]
    settings: tuple[Setting, ...]
    request_json: str
    curl: str
    playground: str | None


@dataclass(frozen=True, slots=True)
class JobsPage:
    """The jobs, and one of them."""

    frame: Frame
    rows: tuple[JobRow, ...]
    filter: str
    filters: tuple[tuple[str, str], ...]
    next_href: str | None
    job: JobView | None
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class LiveView:
    """What one message of the stream re-renders."""

    job: JobView
    row: JobRow


@dataclass(frozen=True, slots=True)
class Segment:
    """One sample of a prompt in the list: its state and where it is drawn."""

    kind: str
    x: int
    height: int
    opacity: float


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt of one step."""

    index: int
    text: str
    segments: tuple[Segment, ...]
    width: int
    summary: str
    has_signal: bool
    href: str


@dataclass(frozen=True, slots=True)
class SampleView:
    """One answer with its reward and parts."""

    id: str
    number: int
    reward: float | None
    is_passed: bool
    text: str
    parts: tuple[tuple[str, float | None], ...]
    advantage: float | None
    tokens: int
    finish_reason: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptView:
    """The chosen prompt with its samples, best first."""

    index: int
    turns: tuple[Turn, ...]
    reference: str
    summary: str
    samples: tuple[SampleView, ...]


@dataclass(frozen=True, slots=True)
class RolloutsPage:
    """The rollouts of one step and split."""

    frame: Frame
    job_id: str
    job_name: str
    split: str
    splits: tuple[tuple[str, str, str], ...]
    step: int | None
    steps: tuple[tuple[int, str], ...]
    summary: str
    prompts: tuple[PromptRow, ...]
    prompt: PromptView | None
    is_cut: bool

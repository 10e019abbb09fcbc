"""What the Playground's templates get: the form, and a column of answers for each model."""

from dataclasses import dataclass

from app.dashboard.contexts import Choice, Frame, Turn


@dataclass(frozen=True, slots=True)
class SampleView:
    """One answer. `score` is the grader's word on it, `problem` why there is none."""

    number: int
    text: str
    ending: str
    score: float | None
    parts: tuple[tuple[str, float | None], ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class ColumnView:
    """What one model said, or why it said nothing and what to do about that."""

    place: int
    model: str
    href: str
    kind: str
    samples: tuple[SampleView, ...]
    reading: str
    error: str | None
    can_load: bool
    needs: str


@dataclass(frozen=True, slots=True)
class ColumnPage:
    """A column alone, as it ends a stream."""

    frame: Frame
    column: ColumnView
    is_graded: bool
    address: str


@dataclass(frozen=True, slots=True)
class PlaygroundPage:
    """The form with its answers."""

    frame: Frame
    models: tuple[Choice, ...]
    graders: tuple[Choice, ...]
    values: dict[str, str]
    turns: tuple[Turn, ...]
    errors: dict[str, str]
    summary: tuple[tuple[str, str], ...]
    columns: tuple[ColumnView, ...]
    is_graded: bool
    address: str
    python: str
    curl: str
    example: str

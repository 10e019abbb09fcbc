"""The kinds of graders and what each one holds: the shapes of the wire, as plain frozen data.

No meaning and no leniency: `leniency` brings a request into these shapes, `spec` judges what they say,
`grade` runs them.

Source: https://platform.openai.com/docs/guides/graders; `endpoint` as Azure's preview has it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from app.graders.checks import Operation
from app.graders.similarity import Metric

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Shape(BaseModel):
    """The parent of every shape: no unknown keys, no silent conversion, no change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StringCheck(Shape):
    """1 when `operation` holds between the rendered input and reference, else 0."""

    type: Literal["string_check"]
    name: str
    input: str
    reference: str
    operation: Operation


class TextSimilarity(Shape):
    """How alike the rendered input and reference are, 0 to 1."""

    type: Literal["text_similarity"]
    name: str
    input: str
    reference: str
    evaluation_metric: Metric


class TextPart(Shape):
    """Text of a message."""

    type: Literal["input_text", "output_text"]
    text: str


class ImagePart(Shape):
    """A picture of a message, by its address or as a data URL."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None


class Audio(Shape):
    """Sound, base64."""

    data: str
    format: Literal["mp3", "wav"]


class AudioPart(Shape):
    """A sound of a message."""

    type: Literal["input_audio"]
    input_audio: Audio


def _form_of(content: object) -> str:
    return "<text>" if isinstance(content, str) else "<parts>"


def _kind_of_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else getattr(part, "type", None)
    return {"input_image": "<image>", "input_audio": "<audio>"}.get(str(kind), "<words>")


# The tags stand in angle brackets because pydantic puts them into the path of a finding: see `spec`.
MessagePart: TypeAlias = Annotated[
    Annotated[TextPart, Tag("<words>")]
    | Annotated[ImagePart, Tag("<image>")]
    | Annotated[AudioPart, Tag("<audio>")],
    Discriminator(_kind_of_part),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[MessagePart], Tag("<parts>")], Discriminator(_form_of)
]


class Message(Shape):
    """One message to a judge; its texts are templates."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] | None = None


class SamplingParams(Shape):
    """How a judge samples. `max_completions_tokens` is OpenAI's own spelling."""

    seed: int | None = None
    top_p: float | None = Field(default=None, ge=0, le=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_completions_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Effort | None = None


class ScoreModel(Shape):
    """A number that a judge model gives, clamped to `range`."""

    type: Literal["score_model"]
    name: str
    model: str = Field(min_length=1)
    input: list[Message] = Field(min_length=1)
    range: list[float] | None = Field(default=None, min_length=2, max_length=2)
    sampling_params: SamplingParams | None = None


class LabelModel(Shape):
    """1 when the label a judge model gives is a passing one, else 0."""

    type: Literal["label_model"]
    name: str
    model: str = Field(min_length=1)
    input: list[Message] = Field(min_length=1)
    labels: list[str] = Field(min_length=1)
    passing_labels: list[str] = Field(min_length=1)
    sampling_params: SamplingParams | None = None


class Endpoint(Shape):
    """The score that a user's HTTP endpoint gives. Units: `rate_limit` in requests a minute."""

    type: Literal["endpoint"]
    name: str
    url: str
    headers: dict[str, str] | None = None
    rate_limit: int | None = Field(default=None, ge=1)


class Python(Shape):
    """The number that a user's `grade(sample, item)` returns, in a sandbox."""

    type: Literal["python"]
    name: str
    source: str = Field(min_length=1)
    image_tag: str | None = None


Judge: TypeAlias = ScoreModel | LabelModel
Leaf: TypeAlias = StringCheck | TextSimilarity | ScoreModel | LabelModel | Endpoint | Python
Part: TypeAlias = Annotated[Leaf, Field(discriminator="type")]


class Multi(Shape):
    """Several graders and the formula that joins their rewards."""

    type: Literal["multi"]
    name: str
    graders: dict[str, Part]
    calculate_output: str


AnyGrader: TypeAlias = Leaf | Multi
Grader: TypeAlias = Annotated[AnyGrader, Field(discriminator="type")]


def templates_of(leaf: Leaf) -> list[tuple[str, str]]:
    """Return every template of a grader with the path of the key it stands in."""
    if isinstance(leaf, StringCheck | TextSimilarity):
        return [("input", leaf.input), ("reference", leaf.reference)]
    if isinstance(leaf, ScoreModel | LabelModel):
        return [
            (f"input[{index}].content{place}", text)
            for index, message in enumerate(leaf.input)
            for place, text in _texts(message.content)
        ]
    return []


def sees_everything(leaf: Leaf) -> bool:
    """Say whether a grader is handed the whole answer, without naming it in a template."""
    return isinstance(leaf, Endpoint | Python)


def _texts(content: Any) -> list[tuple[str, str]]:
    if isinstance(content, str):
        return [("", content)]
    found = []
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            found.append((f"[{index}].text", part.text))
        elif isinstance(part, ImagePart):
            found.append((f"[{index}].image_url", part.image_url))
    return found

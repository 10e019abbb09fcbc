"""The shapes of graders on the wire: the alpha routes' own, saved graders and trials.

What a grader itself may hold is judged in `app.graders.spec`.

Source: OpenAI's /fine_tuning/alpha/graders/run and /validate (wire.md §3.3, §3.4); ours: wire.md §14.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.bodies import Shape
from app.core.clock import seconds
from app.core.tables import GraderVersion, SavedGrader
from app.graders.result import Grade, Tokens
from app.graders.spec import Grader
from app.services.fresh_answers import MOST_PROMPTS, MOST_SAMPLES, PROMPTS, SAMPLES
from app.services.trials import MOST_ANSWERS

NO_TOKENS = {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}


class OnlyGrader(Shape):
    """The body of a validation, or of a new version."""

    grader: Any


class RunBody(Shape):
    """The body of a run."""

    grader: Any
    model_sample: str
    item: dict[str, Any] | None = None


class NewGrader(Shape):
    """The body of a creation."""

    name: str
    grader: Any


class NewName(Shape):
    """The body of an update."""

    name: str


class TrialAnswer(Shape):
    """One answer to try a grader on; `item_index` counts the rows of the file or the items."""

    output_text: str
    item_index: int = Field(default=0, ge=0)


class TrialJob(Shape):
    """Which stored rollouts to try a grader on."""

    id: str
    step: int | None = Field(default=None, ge=0)
    split: Literal["train", "valid", "test"] = "train"


class TrialFresh(Shape):
    """Which model answers the first prompts of the file, and how often each."""

    model: str
    prompts: int = Field(default=PROMPTS, ge=1, le=MOST_PROMPTS)
    samples: int = Field(default=SAMPLES, ge=1, le=MOST_SAMPLES)


class TrialBody(Shape):
    """The body of a trial: a grader, the rows, the answers, and what the right one would be."""

    grader: Any
    file: str | None = None
    items: list[dict[str, Any]] | None = Field(default=None, min_length=1, max_length=MOST_ANSWERS)
    answers: list[TrialAnswer] = Field(default_factory=list, max_length=MOST_ANSWERS)
    job: TrialJob | None = None
    fresh: TrialFresh | None = None
    reference: str | None = None
    response_format: Any = None
    probes: bool = True


class RunMetadata(BaseModel):
    """How a run went: the flags, all of them, and what it took."""

    name: str
    type: str
    errors: dict[str, bool | str | None]
    execution_time: float
    scores: dict[str, float]
    token_usage: Tokens | None
    sampled_model_name: str | None


class RunResult(BaseModel):
    """The answer to a run. A missing grade is 0 here, as OpenAI has it; its flags tell it from a real 0."""

    reward: float
    metadata: RunMetadata
    sub_rewards: dict[str, float | None]
    model_grader_token_usage_per_model: dict[str, Tokens]


class ValidatedGrader(BaseModel):
    """A grader in its normal form."""

    grader: dict[str, Any]


class SavedGraderObject(BaseModel):
    """A saved grader with its latest version."""

    id: str
    object: Literal["grader"] = "grader"
    name: str
    version: int
    sha256: str
    grader: dict[str, Any]
    created_at: int
    updated_at: int


class VersionObject(BaseModel):
    """One version of a saved grader."""

    id: str
    object: Literal["grader.version"] = "grader.version"
    grader_id: str
    version: int
    sha256: str
    grader: dict[str, Any]
    created_at: int


class DeletedGrader(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["grader.deleted"] = "grader.deleted"
    deleted: Literal[True] = True


def run_result(grader: Grader, done: Grade) -> RunResult:
    """Return the wire form of one grade."""
    judged = done.sampled_model is not None or bool(done.usage)
    return RunResult(
        reward=done.reward if done.reward is not None else 0.0,
        metadata=RunMetadata(
            name=grader.name,
            type=grader.type,
            errors=done.errors.to_dict(),
            execution_time=done.seconds,
            scores=done.scores,
            # Zeros for a judgement that was paid for before.
            token_usage=_total(done.usage) if judged else None,
            sampled_model_name=done.sampled_model,
        ),
        sub_rewards=done.parts,
        model_grader_token_usage_per_model=done.usage,
    )


def saved_grader(saved: SavedGrader, version: GraderVersion) -> SavedGraderObject:
    """Return the wire form of a saved grader with its latest version."""
    return SavedGraderObject(
        id=saved.id,
        name=saved.name,
        version=version.version,
        sha256=version.sha256,
        grader=version.content,
        created_at=seconds(saved.created_at),
        updated_at=seconds(saved.updated_at),
    )


def version_object(version: GraderVersion) -> VersionObject:
    """Return the wire form of one version."""
    return VersionObject(
        id=version.id,
        grader_id=version.grader_id,
        version=version.version,
        sha256=version.sha256,
        grader=version.content,
        created_at=seconds(version.created_at),
    )


def _total(usage: Mapping[str, Tokens]) -> Tokens:
    return {name: sum(tokens.get(name, 0) for tokens in usage.values()) for name in NO_TOKENS}

"""The answers of graders/run and graders/validate, as OpenAI's clients require them.

Source: https://platform.openai.com/docs/api-reference/graders/run
"""

from typing import Any

from pydantic import BaseModel

from app.api.bodies import Shape
from app.graders.result import Grade
from app.graders.spec import Grader


class NewRun(Shape):
    """The body of a run. The grader itself is judged by `parse_grader`."""

    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] | None = None


class Candidate(Shape):
    """The body of a validation."""

    grader: dict[str, Any]


class RunMetadata(BaseModel):
    """How a grading went: which errors, how long."""

    name: str
    type: str
    errors: dict[str, bool | str | None]
    # Units: seconds.
    execution_time: float
    scores: dict[str, float]
    token_usage: None = None
    sampled_model_name: None = None


class RunResult(BaseModel):
    """A grading. A failed one has reward 0 and says why in `metadata.errors`."""

    reward: float
    metadata: RunMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, Any]


class ValidGrader(BaseModel):
    """A grader that was found well-formed, in its plain form."""

    grader: dict[str, Any]


def run_result(grader: Grader, grade: Grade) -> RunResult:
    """Return the wire form of a grade. A missing reward is 0 here, and told apart by its flags."""
    return RunResult(
        reward=grade.reward or 0.0,
        metadata=RunMetadata(
            name=grader.name,
            type=grader.type,
            errors=grade.errors.to_dict(),
            execution_time=grade.seconds,
            scores=grade.scores,
        ),
        sub_rewards={key: reward or 0.0 for key, reward in grade.parts.items()},
        model_grader_token_usage_per_model={},
    )

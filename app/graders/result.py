"""What grading one answer gives: a reward or none, whose fault a failure was, OpenAI's fourteen error keys.

Pure data. `grade` builds it; the worker stores it, the API writes it out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

# Whose fault a failed grading was decides what it is worth: the answer's is a real 0, every other is missing.
Fault = Literal["none", "answer", "grader", "infrastructure"]


# prompt_tokens, completion_tokens, cached_tokens, total_tokens
Tokens: TypeAlias = dict[str, int]


@dataclass(frozen=True, slots=True)
class GradeErrors:
    """The error flags of one grade.

    Source: `metadata.errors` of POST /v1/fine_tuning/alpha/graders/run. SDKs require every key.
    """

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None

    def to_dict(self) -> dict[str, bool | str | None]:
        """Return all fourteen keys as they stand on the wire."""
        return asdict(self)

    def joined(self, other: "GradeErrors") -> "GradeErrors":
        """Return the flags that either has; the first text wins."""
        mine, theirs = self.to_dict(), other.to_dict()
        return GradeErrors(**{key: mine[key] or theirs[key] for key in mine})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Grade:
    """One graded answer. `reward` is None when the grade is missing, which is never the same as 0.

    `part_grades` holds one grade per key of a multi grader, and is empty for any other kind. `usage` holds
    what judges were paid for by model; `sampled_model` is the model that judged; `timed_out` tells a grader
    stopped at its time limit from one that failed otherwise.
    Units: `seconds` of wall time.
    """

    reward: float | None
    fault: Fault = "none"
    errors: GradeErrors = GradeErrors()
    part_grades: dict[str, "Grade"] = field(default_factory=dict)
    seconds: float = 0.0
    message: str | None = None
    usage: dict[str, Tokens] = field(default_factory=dict)
    sampled_model: str | None = None
    timed_out: bool = False

    @property
    def parts(self) -> dict[str, float | None]:
        """Return the reward of every part of a multi grader by its key."""
        return {key: part.reward for key, part in self.part_grades.items()}

    @property
    def scores(self) -> dict[str, float]:
        """Return the parts that have a reward, the `scores` of the wire."""
        return {key: reward for key, reward in self.parts.items() if reward is not None}


def answers_fault(message: str) -> Grade:
    """Return the real 0 of an answer that breaks its contract."""
    return Grade(
        reward=0.0, fault="answer", errors=GradeErrors(sample_parse_error=True), message=storable(message)
    )


def graders_fault(message: str, errors: GradeErrors) -> Grade:
    """Return the missing grade of a grader that failed by itself."""
    return Grade(reward=None, fault="grader", errors=errors, message=storable(message))


def infrastructure_fault(message: str, errors: GradeErrors) -> Grade:
    """Return the missing grade of a part that was down: never 0, under no policy."""
    return Grade(reward=None, fault="infrastructure", errors=errors, message=storable(message))


def added(usages: Iterable[Mapping[str, Tokens]]) -> dict[str, Tokens]:
    """Return the sum of token uses, model by model."""
    total: dict[str, Tokens] = {}
    for usage in usages:
        for model, tokens in usage.items():
            sums = total.setdefault(model, {})
            for name, count in tokens.items():
                sums[name] = sums.get(name, 0) + count
    return total


def storable(message: str) -> str:
    """Return a message any database takes: no lone surrogates, no NUL, of bounded length."""
    return message[:2000].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")

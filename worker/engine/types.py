"""The nouns that cross the engine's border: prompts in, rollouts and reports out.

Numbers, texts and tuples only, no tensors, so whatever reads a report needs no torch. Built by the engine,
read by the runner, which stores them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens the model is asked to continue, and the dataset row they came from."""

    item_index: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer with its tokens.

    `token_ids` ends with the stop token when `finish_reason` is "stop"; `text` never holds it. `logprobs` are
    those of the sampling distribution, one a token; a token forced by the grammar has exactly 0.
    """

    split: str
    step: int
    item_index: int
    sample_index: int
    prompt_tokens: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout and its grade; reward None is missing, advantage None took no part in training."""

    rollout: Rollout
    reward: float | None
    advantage: float | None


Score = Callable[[Sequence[Rollout]], Sequence[float | None]]
"""Grades rollouts, in their order; None is a missing grade, which is not a zero."""


OnAnswer = Callable[[Rollout], None]
"""Hears of each answer the moment it ends, in no order: grading may begin while others are sampled."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The answers of one model to a whole split. `seconds` is wall time and holds `grading_seconds`."""

    split: str
    step: int
    rollouts: tuple[ScoredRollout, ...]
    reward_mean: float | None
    graded: int
    seconds: float
    grading_seconds: float


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The figures of one step; log-prob figures are means over the answer tokens that took part in training.

    `kl` is to the base model (0 when `kl_beta` is 0), `sampler_trainer_kl` is between the log-probs of
    sampling and those of training before the update, `clip_fraction` counts tokens whose gradient the clip
    removed, `truncated_fraction` answers without an end.
    """

    reward_mean: float | None
    graded: int
    groups: int
    groups_without_signal: int
    loss: float
    grad_norm: float
    kl: float
    sampler_trainer_kl: float
    clip_fraction: float
    entropy: float
    completion_tokens: int
    completion_tokens_mean: float
    truncated_fraction: float
    learning_rate: float
    skipped: bool
    sampling_seconds: float
    grading_seconds: float
    training_seconds: float
    evaluation_seconds: float
    iteration_seconds: float

    @property
    def pct_no_signal(self) -> float:
        """The share of groups that taught nothing, between 0 and 1."""
        return self.groups_without_signal / self.groups if self.groups else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens sampled, graded and trained in a second of the step; validation does not count."""
        seconds = self.iteration_seconds - self.evaluation_seconds
        return self.completion_tokens / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. Step 0 is the base model's validation alone: no rollouts, all metrics 0."""

    step: int
    total_steps: int
    rollouts: tuple[ScoredRollout, ...]
    validation: EvaluationReport | None
    metrics: StepMetrics

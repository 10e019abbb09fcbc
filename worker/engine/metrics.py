"""The figures of a step, gathered while it runs and frozen at its end. Called by `reinforcement.py` alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from statistics import fmean
from time import perf_counter

from worker.engine.types import Rollout, StepMetrics
from worker.engine.update import Gradient


def weighed(parts: Sequence[tuple[float, Gradient]]) -> Gradient:
    """Return the figures of a whole step from those of its parts, each with its share of the tokens."""
    return Gradient(
        **{
            one.name: sum(share * getattr(part, one.name) for share, part in parts)
            for one in fields(Gradient)
        }
    )


@dataclass(slots=True)
class Measured:
    """A step's figures so far; times by part, in seconds."""

    groups: int = 0
    groups_without_signal: int = 0
    gradient: Gradient = field(default_factory=Gradient)
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    skipped: bool = False
    started: float = field(default_factory=perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part's."""
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - started

    def freeze(self, rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> StepMetrics:
        """Return the finished figures of these rollouts."""
        present = [reward for reward in rewards if reward is not None]
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        cut = [rollout.finish_reason == "length" for rollout in rollouts]
        return StepMetrics(
            reward_mean=fmean(present) if present else None,
            graded=len(present),
            groups=self.groups,
            groups_without_signal=self.groups_without_signal,
            loss=self.gradient.loss,
            grad_norm=self.grad_norm,
            kl=self.gradient.kl,
            sampler_trainer_kl=self.gradient.sampler_trainer_kl,
            clip_fraction=self.gradient.clip_fraction,
            entropy=self.gradient.entropy,
            completion_tokens=sum(lengths),
            completion_tokens_mean=fmean(lengths) if lengths else 0.0,
            truncated_fraction=fmean(cut) if cut else 0.0,
            learning_rate=self.learning_rate,
            skipped=self.skipped,
            sampling_seconds=self.seconds.get("sampling", 0.0),
            grading_seconds=self.seconds.get("grading", 0.0),
            training_seconds=self.seconds.get("training", 0.0),
            evaluation_seconds=self.seconds.get("evaluation", 0.0),
            iteration_seconds=perf_counter() - self.started,
        )

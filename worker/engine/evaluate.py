"""A model's answers to a whole split, graded: validation during training, and the held-out test after it.

No gradient, no state. Called by `reinforcement.py` and by the runner.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from time import perf_counter

from worker.engine.advantages import graded
from worker.engine.grammar import Grammar
from worker.engine.parallel import Alone
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.types import EvaluationReport, OnAnswer, Prompt, Rollout, Score, ScoredRollout


def evaluate(
    policy: Policy,
    *,
    prompts: Sequence[Prompt],
    score: Score,
    split: str,
    step: int,
    samples: int,
    max_completion_tokens: int,
    temperature: float,
    seed: int,
    grammar: Grammar | None = None,
    adapter: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    on_answer: OnAnswer | None = None,
    parallel: Alone | None = None,
) -> EvaluationReport:
    """Answer every prompt `samples` times and grade the answers.

    Temperature 0 is greedy; without `adapter` it is the base model that answers. `on_progress` hears
    (answers done, answers in all) after each wave, `on_answer` of each answer the moment it ends. With
    `parallel` several processes share the prompts, and each reports all.
    Raises: NonFinite when the model's logits are not finite.
    """
    started = perf_counter()
    sampling = Sampling(split, step, samples, max_completion_tokens, temperature, seed)
    parallel = parallel or Alone()
    own = parallel.own(prompts)

    def answered() -> list[Rollout]:
        done: list[Rollout] = []
        with policy.merged() if adapter else policy.base():
            for wave in sample(policy, own, sampling, grammar, on_answer):
                done += wave
                if on_progress is not None:
                    on_progress(len(done), len(own) * samples)
        return done

    rollouts = parallel.attempt(answered)
    grading = perf_counter()
    rollouts, rewards = parallel.all_answers(rollouts, rewards_of(score, rollouts), samples)
    ended = perf_counter()
    present = [reward for reward in rewards if reward is not None]
    return EvaluationReport(
        split=split,
        step=step,
        rollouts=tuple(
            ScoredRollout(rollout, reward, None) for rollout, reward in zip(rollouts, rewards, strict=True)
        ),
        reward_mean=fmean(present) if present else None,
        graded=len(present),
        seconds=ended - started,
        grading_seconds=ended - grading,
    )


def rewards_of(score: Score, rollouts: Sequence[Rollout]) -> list[float | None]:
    """Grade rollouts; a grade that is not a finite number is missing.

    Raises: ValueError when the scoring function does not answer for each rollout.
    """
    rewards = list(score(rollouts))
    if len(rewards) != len(rollouts):
        raise ValueError(f"{len(rollouts)} answers were given to be graded, {len(rewards)} grades came back")
    return [graded(reward) for reward in rewards]

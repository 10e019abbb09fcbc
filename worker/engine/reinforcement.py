"""Reinforcement fine-tuning, the method from top to bottom: sample, grade, compare within the group, update.

`Reinforcement` holds a run. The caller pulls reports out of `steps()`, saves checkpoints between them, and
stops by closing the generator. How each part works is in its own module; what a checkpoint holds is in
`state.py`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from worker.engine import state
from worker.engine.advantages import Advantages, group_advantages
from worker.engine.batches import Answer, Group
from worker.engine.config import TrainingConfig
from worker.engine.errors import NonFinite
from worker.engine.evaluate import evaluate, rewards_of
from worker.engine.fit import Fit
from worker.engine.grammar import Grammar
from worker.engine.metrics import Measured, weighed
from worker.engine.optimizer import Optimizer
from worker.engine.parallel import Alone
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.seeds import shuffled
from worker.engine.tape import Tape
from worker.engine.types import (
    EvaluationReport,
    OnAnswer,
    Prompt,
    Rollout,
    Score,
    ScoredRollout,
    StepReport,
)
from worker.engine.update import Gradient, compute_gradient


class Reinforcement:
    """One run: `step` is the last step done, `notes` says in words what a person should know."""

    def __init__(
        self,
        policy: Policy,
        *,
        train_prompts: Sequence[Prompt],
        valid_prompts: Sequence[Prompt],
        score: Score,
        config: TrainingConfig,
        grammar: Grammar | None = None,
        resume: Path | None = None,
        resume_sha256: str | None = None,
        base_line: bool = True,
        on_answer: OnAnswer | None = None,
        parallel: Alone | None = None,
    ) -> None:
        """Start afresh, or with `resume` after the step of a checkpoint; `base_line` False leaves out step 0.

        `resume_sha256` is what `save_checkpoint` returned of it.

        `on_answer` may begin to grade what `score` will be asked for; the rewards are `score`'s alone. With
        `parallel` several processes run this together, each asked to score its own share of the answers; all
        give the same reports.

        Raises: ValueError for prompts that cannot be answered; CheckpointRefused when the checkpoint is not
        whole, is another run's, or gives other numbers than when it was saved.
        """
        _check_prompts(policy, [*train_prompts, *valid_prompts], config)
        if not train_prompts:
            raise ValueError("there is nothing to train on")
        self.policy = policy
        self.config = config
        self.step = 0
        self.notes: list[str] = []
        self.micro_batch_tokens = config.micro_batch_tokens
        self.optimizer = Optimizer(policy, config)
        self.train_prompts = tuple(train_prompts)
        self._valid_prompts = tuple(valid_prompts)
        self._score = score
        self._on_answer = on_answer
        self._grammar = grammar
        self._parallel = parallel or Alone()
        self._tape = Tape(0)
        self.keeps_tape = True
        self._fresh = resume is None and base_line
        if resume is not None:
            state.load(self, resume, resume_sha256)
        else:
            self._make_fit()

    def _make_fit(self) -> None:
        """Cut micro-batches to the memory there is; said where it is less than the config asks for."""
        prompts = [*self.train_prompts, *self._valid_prompts]
        fit = self._parallel.attempt(lambda: Fit.of(self.policy, self.config, prompts))
        # Processes that share a run choose alike: the checkpoint of one must do for all.
        self.micro_batch_tokens = min(self._parallel.all([fit.micro_batch_tokens]))
        self.keeps_tape = all(self._parallel.all([fit.tape]))
        if not self.keeps_tape:
            self.notes.append("memory is short: what sampling computed is computed again to train")
        if any(self._parallel.all([fit.recompute])):
            self.policy.recompute()
            self.notes.append(
                "memory is short: layers are computed again in the backward pass, which takes longer"
            )
        if self.micro_batch_tokens < self.config.micro_batch_tokens:
            self.notes.append(f"memory is short: micro-batches of {self.micro_batch_tokens} tokens")

    def steps(self) -> Iterator[StepReport]:
        """Train step by step; a fresh run with validation prompts begins with step 0, the base model's.

        Raises: NumericalInstability, OutOfMemory; whatever the scoring function raises, which is how it
        refuses a step: training answers are graded before the update, so the weights are those of the step
        before; a step whose validation is refused is never reported.
        """
        if self._fresh and self._valid_prompts:
            self._fresh = False
            yield self._base_line()
        while self.step < self.config.total_steps:
            report = self._take_step(self.step + 1)
            self.step = report.step
            yield report

    def save_checkpoint(self, directory: Path) -> str:
        """Write the run as it stands after the last step; return the sha256 of the checkpoint's manifest."""
        return state.save(self, directory)

    def _take_step(self, step: int) -> StepReport:
        measured = Measured(learning_rate=self.optimizer.learning_rate)
        prompts = self._prompts_of(step)
        measured.groups = len(prompts)
        groups_of = self.config.samples_per_prompt
        own, waves = self._parallel.own(prompts), self.policy.wave_tokens
        try:
            with measured.timing("sampling"):
                rollouts = self._parallel.attempt(lambda: self._sample(own, step))
        except NonFinite as error:
            self._drop_tape(step)
            self._fail(step, measured, str(error), weights=True)
            return self._report(step, [], [], None, measured)
        self.policy.wave_tokens = min(self._parallel.all([self.policy.wave_tokens]))
        if self.policy.wave_tokens != waves:
            waves = self.policy.wave_tokens
            self.notes.append(f"step {step}: out of memory; sampling in waves of {waves} tokens from here on")
        with measured.timing("grading"):
            own_rewards = self._parallel.attempt(lambda: rewards_of(self._score, rollouts))
            rollouts, rewards = self._parallel.all_answers(rollouts, own_rewards, groups_of)
        advantages = group_advantages(
            [rewards[start : start + groups_of] for start in range(0, len(rewards), groups_of)],
            self.config.advantage,
        )
        measured.groups_without_signal = len(prompts) - len(advantages.teaching)
        with measured.timing("training"):
            self._update(step, prompts, rollouts, advantages, measured)
        return self._report(step, rollouts, rewards, advantages, measured)

    def _prompts_of(self, step: int) -> list[Prompt]:
        """Return a step's prompts: each epoch goes through all of them once, in an order of its own."""
        count, size = len(self.train_prompts), self.config.batch_size
        epoch, place = divmod(step - 1, math.ceil(count / size))
        order = shuffled(count, self.config.seed, "order", epoch)
        return [self.train_prompts[index] for index in order[place * size : (place + 1) * size]]

    def _sample(self, prompts: Sequence[Prompt], step: int) -> list[Rollout]:
        config = self.config
        sampling = Sampling(
            split="train",
            step=step,
            samples=config.samples_per_prompt,
            max_tokens=config.max_completion_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )
        self._tape = Tape(config.tape_mib << 20 if self.keeps_tape else 0)
        with self.policy.merged(), self.policy.recording(self._tape):
            waves = sample(self.policy, prompts, sampling, self._grammar, self._on_answer)
            return [rollout for wave in waves for rollout in wave]

    def _update(
        self,
        step: int,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        advantages: Advantages,
        measured: Measured,
    ) -> None:
        groups = {}
        for index in advantages.teaching:
            values = advantages.values[index]
            own = rollouts[index * len(values) : (index + 1) * len(values)]
            answers = tuple(
                Answer(rollout.token_ids, rollout.logprobs, advantage, self._tape.record_of(rollout))
                for rollout, advantage in zip(own, values, strict=True)
                if advantage is not None
            )
            groups[index] = Group(prompts[index].token_ids, answers)
        if not groups:
            self._drop_tape(step)
            return
        mine = [groups[index] for index in self._parallel.own(range(len(prompts))) if index in groups]
        gradient, fitted = self._parallel.attempt(lambda: self._gradient(mine))
        self._drop_tape(step)
        share = _answer_tokens(mine) / _answer_tokens(groups.values())
        self._parallel.add_gradients(self.policy.adapter.values(), share)
        measured.gradient = weighed(self._parallel.all([(share, gradient)]))
        fitted = min(self._parallel.all([fitted]))
        if fitted != self.micro_batch_tokens:
            self.notes.append(f"step {step}: out of memory; micro-batches of {fitted} tokens from here on")
            self.micro_batch_tokens = fitted
        if not math.isfinite(measured.gradient.loss):
            measured.gradient = Gradient()  # of which no figure tells anything
            self._fail(step, measured, "the loss is not finite")
            return
        norm = self.optimizer.apply()
        if norm is None:
            self._fail(step, measured, "the gradient is not finite")
            return
        measured.grad_norm = norm

    def _gradient(self, groups: Sequence[Group]) -> tuple[Gradient, int]:
        budget = self.micro_batch_tokens
        if not groups:  # of this process's share, nothing teaches
            return Gradient(), budget
        return compute_gradient(self.policy, groups, self.config, self._grammar, budget, self._tape)

    def _drop_tape(self, step: int) -> None:
        """Let go of what sampling computed; where memory ran out over it, the next steps keep none."""
        ran_out = self._parallel.all([self._tape.ran_out])
        self._tape = Tape(0)
        if any(ran_out):
            self.keeps_tape = False
            self.notes.append(
                f"step {step}: out of memory; what sampling computed is computed again from here on"
            )

    def _fail(self, step: int, measured: Measured, reason: str, *, weights: bool = False) -> None:
        measured.skipped = True
        self.notes.append(f"step {step}: {reason}; {self.optimizer.fail(step, weights=weights)}")

    def _report(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        rewards: Sequence[float | None],
        advantages: Advantages | None,
        measured: Measured,
    ) -> StepReport:
        validation = None
        due = step % self.config.eval_interval == 0 or step == self.config.total_steps
        if self._valid_prompts and due:
            with measured.timing("evaluation"):
                validation = self._validated(step, measured)
        values = [value for group in advantages.values for value in group] if advantages else []
        return StepReport(
            step=step,
            total_steps=self.config.total_steps,
            rollouts=tuple(map(ScoredRollout, rollouts, rewards, values)),
            validation=validation,
            metrics=measured.freeze(rollouts, rewards),
        )

    def _validated(self, step: int, measured: Measured) -> EvaluationReport | None:
        """Validate a step, with the weights before its update where those after it give no finite numbers."""
        try:
            return self._validate(step)
        except NonFinite as error:
            if measured.skipped:  # once a step is often enough
                return None
            self._fail(step, measured, str(error), weights=True)
            return self._validated(step, measured)

    def _base_line(self) -> StepReport:
        measured = Measured()
        with measured.timing("evaluation"):
            validation = self._validate(0)
        return StepReport(0, self.config.total_steps, (), validation, measured.freeze([], []))

    def _validate(self, step: int) -> EvaluationReport:
        return evaluate(
            self.policy,
            prompts=self._valid_prompts,
            score=self._score,
            split="valid",
            step=step,
            samples=self.config.eval_samples,
            max_completion_tokens=self.config.max_completion_tokens,
            temperature=self.config.eval_temperature,
            seed=self.config.seed,
            grammar=self._grammar,
            adapter=step > 0 or self.policy.is_tuned,
            on_answer=self._on_answer,
            parallel=self._parallel,
        )


def _answer_tokens(groups: Iterable[Group]) -> int:
    return sum(len(answer.token_ids) for group in groups for answer in group.answers)


def _check_prompts(policy: Policy, prompts: Sequence[Prompt], config: TrainingConfig) -> None:
    for prompt in prompts:
        if not prompt.token_ids:
            raise ValueError(f"item {prompt.item_index} has an empty prompt")
        length = len(prompt.token_ids) + config.max_completion_tokens
        if policy.context_length is not None and length > policy.context_length:
            raise ValueError(
                f"item {prompt.item_index}: prompt and answer may take {length} tokens, "
                f"but the model reads at most {policy.context_length}"
            )

"""Our side of the engine's bench: the public engine, one step each time it is told to.

`python -m tests.bench.engine_ours WORK`, started by `tests/bench/engine.py`. End tokens are ignored by
clearing the policy's stop ids, so that every answer has its full length.
"""

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from worker.engine import machine

# As the trainer does, before torch is loaded.
machine.wait_briefly()
machine.keep_memory()

import torch
from transformers import AutoConfig

from tests.bench.engine_work import (
    ALPHA,
    RANK,
    RATE,
    Work,
    fingerprint,
    matrix_rate,
    orders,
    peak_mb,
    planted,
    prompt_texts,
    say,
)
from worker.engine.config import TrainingConfig
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt, StepReport


def main() -> None:
    """Load, then step when told; each step's figures and the matrix rate beside it go to the driver."""
    work = Work.from_json(sys.argv[1])
    shape = work.shape
    config = TrainingConfig(
        seed=1,
        batch_size=shape.prompts,
        samples_per_prompt=shape.answers,
        total_steps=work.steps,
        max_completion_tokens=shape.answer_tokens,
        learning_rate=RATE,
        lora_rank=RANK,
        lora_alpha=ALPHA,
        threads=work.threads,
    )
    policy = Policy.load(Path(work.model), config=config)
    policy.stop_ids = ()
    texts = prompt_texts(shape, encode=lambda text: policy.tokenizer(text).input_ids)
    tokens = [tuple(policy.tokenizer(text).input_ids) for text in texts]
    run = Reinforcement(
        policy,
        train_prompts=[Prompt(index, ids) for index, ids in enumerate(tokens)],
        valid_prompts=[],
        score=_score,
        config=config,
    )
    say(
        "ready",
        prompts=fingerprint(tokens),
        prompt_tokens=sum(map(len, tokens)),
        parameters=_passed(policy, work.model),
        dtype=str(policy.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )
    steps = run.steps()
    for _ in orders():
        started = perf_counter()
        report = next(steps)
        seconds = perf_counter() - started
        rate = matrix_rate(torch, policy.device, policy.dtype)
        say("step", seconds=seconds, rate=rate, prompts=fingerprint(tokens), **_figures(report))
    say("end", peak_mb=peak_mb(), gpu_peak_mb=_gpu_peak_mb())


def _score(rollouts: Any) -> list[float]:
    return [planted(rollout.sample_index) for rollout in rollouts]


def _figures(report: StepReport) -> dict[str, Any]:
    metrics = report.metrics
    lengths = {len(scored.rollout.token_ids) for scored in report.rollouts}
    return {
        "lengths": sorted(lengths),
        "answers": len(report.rollouts),
        "groups_skipped": metrics.groups_without_signal,
        "updated": not metrics.skipped and metrics.grad_norm > 0,
        "sampling": metrics.sampling_seconds,
        "training": metrics.training_seconds,
    }


def _passed(policy: Policy, model: str) -> int:
    """Return the parameters a token passes: an input table that is not the output's too is only looked up."""
    config = AutoConfig.from_pretrained(model)
    table = 0 if config.tie_word_embeddings else policy.vocabulary * config.hidden_size
    return policy.parameter_count - table


def _gpu_peak_mb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()

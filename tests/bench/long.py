"""Whether a long run stays as it began: 500 steps of a tiny model, early steps beside late ones.

Answers have one length and planted rewards, so that every step is the same work; each tenth is validated,
each fiftieth saved, as in a job. That memory grows by no more than 2% is a claim; that a step takes no more
than 10% longer is an aim, by the clock and beside a fixed piece of work timed right after it, which a busy
machine slows down as much. Run by `make bench-long`.
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from worker.engine import machine

machine.wait_briefly()

import torch

from tests.bench.engine_work import planted, resident_mb
from tests.tiny_model import build_tiny_model
from worker.engine.config import TrainingConfig
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt, Rollout

STEPS = int(os.environ.get("STEPS", "500"))
MOST_MEMORY, MOST_TIME = 0.02, 0.10


def main() -> int:
    """Print a line each; 1 when memory grew."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        seconds, beside, memory = _run(Path(name))
    fifth = len(memory) // 5
    # The first fifth warms up: allocators and caches find their size.
    early, late = slice(fifth, 2 * fifth), slice(-fifth, None)
    grown = _line("memory_mb", memory, early, late, MOST_MEMORY)
    _line("step_ms", [value * 1000 for value in seconds], early, late, MOST_TIME)
    _line("step_over_fixed_work", beside, early, late, MOST_TIME)
    return 0 if grown <= MOST_MEMORY else 1


def _run(folder: Path) -> tuple[list[float], list[float], list[float]]:
    config = TrainingConfig(
        seed=1,
        batch_size=4,
        samples_per_prompt=4,
        total_steps=STEPS,
        max_completion_tokens=16,
        lora_rank=4,
        eval_interval=10,
        threads=1,
    )
    policy = Policy.load(build_tiny_model(folder / "model"), config=config)
    policy.stop_ids = ()
    prompts = [Prompt(index, policy.encode_chat([_asking(index)])) for index in range(16)]
    run = Reinforcement(
        policy,
        train_prompts=prompts,
        valid_prompts=prompts[:4],
        score=_score,
        config=config,
        base_line=False,
    )
    seconds, beside, memory = [], [], []
    started = perf_counter()
    for report in run.steps():
        taken = perf_counter() - started
        if report.validation is None:
            seconds.append(taken)
            beside.append(taken / _fixed_work())
            memory.append(resident_mb())
        if report.step % 50 == 0:
            run.save_checkpoint(folder / f"step-{report.step}")
        started = perf_counter()
    return seconds, beside, memory


def _fixed_work() -> float:
    """Return the seconds of as much small work as a step of the tiny model is, give or take."""
    started = perf_counter()
    value = torch.ones(16, 64)
    for _ in range(2000):
        value = torch.nn.functional.silu(value @ _WEIGHT)
    return perf_counter() - started


_WEIGHT = torch.full((64, 64), 1 / 64)


def _line(what: str, values: Sequence[float], early: slice, late: slice, most: float) -> float:
    """Print medians of the two windows and return how much the second is above the first."""
    first, last = statistics.median(values[early]), statistics.median(values[late])
    change = last / first - 1
    facts = {"what": what, "steps": STEPS, "early": round(first, 2), "late": round(last, 2)}
    print("LONG", json.dumps({**facts, "change": round(change, 4), "within": most}), flush=True)
    return change


def _asking(index: int) -> dict[str, str]:
    return {"role": "user", "content": f"Say {index:02d}"}


def _score(rollouts: Sequence[Rollout]) -> list[float]:
    return [planted(rollout.sample_index) for rollout in rollouts]


if __name__ == "__main__":
    sys.exit(main())

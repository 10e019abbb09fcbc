"""Whether the engine learns as well as TRL from equally many answers, and the sample project's own curve.

Both sides start from one model, with one prompt, rank and learning rate, and nothing that constrains answers;
each has the algorithm its defaults have. The tuned adapters of both, and the base, are then asked the same
held-out items by one sampler. Intervals are a bootstrap over seeds and items. A difference below TRL that its
interval does not explain is a failed claim; where neither side rises over its base the line says "not shown".
Run by `make bench-learning`; `--task genes` is for a GPU.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from worker.engine import machine

machine.wait_briefly()

import numpy as np

from app.core.methods import learning_rate
from app.core.settings import Settings
from tests.bench.engine import TRL_PYTHON
from tests.bench.engine_sides import running
from tests.bench.engine_work import ALPHA, RANK
from tests.bench.learning_tasks import ROOT, Asked, Item, Task, task
from tests.tiny_model import build_tiny_model
from worker.engine.config import TrainingConfig
from worker.engine.evaluate import evaluate
from worker.engine.grammar import Grammar
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt, Rollout
from worker.models import fetch_default

BOOTSTRAPS = 4000
# Held-out answers are drawn with the same uniforms for every model, so that differences are paired.
HELD_OUT_SEED = 12345


def main() -> int:
    """Print what was asked for; 1 when ours is worse than TRL's."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        held = [
            compare(work, _model(work, arguments.model, folder), arguments, folder / work.name)
            for work in map(task, arguments.task)
        ]
    if arguments.curve:
        curve(arguments.model or fetch_default(Settings().models))
    return 0 if all(held) else 1


def _model(work: Task, named: Path | None, folder: Path) -> Path:
    if work.tiny:
        return build_tiny_model(folder / "tiny")
    return named or fetch_default(Settings().models)


def compare(work: Task, model: Path, arguments: argparse.Namespace, folder: Path) -> bool:
    """Train both sides with each seed, print the line, and say whether ours is not worse."""
    rewards: dict[str, list[list[float]]] = {"base": [], "ours": [], "trl": []}
    seconds = {"ours": 0.0, "trl": 0.0}
    for seed in arguments.seeds:
        policy = _load(work, model, seed)
        config = _config(work, policy.parameter_count, seed)
        base = rewards["base"][0] if rewards["base"] else _held_out(policy, work, tuned=False)
        rewards["base"].append(base)
        started = perf_counter()
        _train_ours(policy, work, config)
        seconds["ours"] += perf_counter() - started
        rewards["ours"].append(_held_out(policy, work, tuned=True))
        order = {"task": work.name, "model": str(model), "seed": seed, "rate": config.learning_rate}
        started = perf_counter()
        _train_trl(work, {**order, "folder": str(folder / f"{seed}"), "settings": arguments.settings})
        seconds["trl"] += perf_counter() - started
        policy.load_adapter(folder / f"{seed}")
        rewards["trl"].append(_held_out(policy, work, tuned=True))
    sides = {side: np.array(values) for side, values in rewards.items()}
    gains = {side: interval(sides[side] - sides["base"]) for side in ("ours", "trl")}
    difference = interval(sides["ours"] - sides["trl"])
    verdict = verdict_of(gains, difference)
    line = {
        "task": work.name,
        "verdict": verdict,
        **{side: interval(values) for side, values in sides.items()},
        **{f"{side}_gain": gain for side, gain in gains.items()},
        "ours_minus_trl": difference,
        "samples": work.steps * work.prompts * work.answers,
        "steps": work.steps,
        "seeds": arguments.seeds,
        "items": len(work.held_out),
        "learning_rate": config.learning_rate,
        "seconds": {side: round(value) for side, value in seconds.items()},
        "model": model.name,
    }
    print("LEARNING", json.dumps(line), flush=True)
    return verdict != "worse than TRL"


def curve(model: Path) -> None:
    """Print the sample project's rewards as it is shipped: constrained answers, its validation file."""
    work, folder = task("orders"), ROOT / "examples" / "order-numbers"
    valid = [json.loads(row) for row in (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    items = {"train": work.train, "valid": [Item(row["messages"], row["order_number"]) for row in valid]}
    policy = _load(work, model, 42)
    config = _config(work, policy.parameter_count, 42, eval_interval=max(1, work.steps // 2))
    schema = json.loads((folder / "response_format.json").read_text())["json_schema"]["schema"]
    started = perf_counter()
    reports = Reinforcement(
        policy,
        train_prompts=_prompts(policy, items["train"]),
        valid_prompts=_prompts(policy, items["valid"]),
        score=_Score(work, items),
        config=config,
        grammar=Grammar.from_json_schema(schema, policy.tokenizer, vocabulary=policy.vocabulary),
    ).steps()
    rewards, validated = [], {}
    for report in reports:
        if report.step:
            rewards.append(round(report.metrics.reward_mean or 0.0, 3))
        if report.validation is not None and report.validation.reward_mean is not None:
            validated[report.step] = round(report.validation.reward_mean, 3)
    line = {"task": "order-numbers", "train_reward": rewards, "valid_reward": validated}
    print("CURVE", json.dumps({**line, "seconds": round(perf_counter() - started)}), flush=True)


class _Score:
    """Grades answers by a task's own function."""

    def __init__(self, work: Task, items: dict[str, Sequence[Item]]) -> None:
        self.work, self.items = work, items

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [
            self.work.reward(rollout.text, self.items[rollout.split][rollout.item_index].right)
            for rollout in rollouts
        ]


def _config(work: Task, parameters: int, seed: int, **numbers: Any) -> TrainingConfig:
    return TrainingConfig(
        seed=seed,
        batch_size=work.prompts,
        samples_per_prompt=work.answers,
        total_steps=work.steps,
        max_completion_tokens=work.answer_tokens,
        learning_rate=learning_rate(parameters, work.rate_multiplier),
        lora_rank=RANK,
        lora_alpha=ALPHA,
        **numbers,
    )


def _load(work: Task, model: Path, seed: int) -> Policy:
    return Policy.load(model, config=_config(work, 1, seed))


def _train_ours(policy: Policy, work: Task, config: TrainingConfig) -> None:
    run = Reinforcement(
        policy,
        train_prompts=_prompts(policy, work.train),
        valid_prompts=[],
        score=_Score(work, {"train": work.train}),
        config=config,
    )
    for report in run.steps():
        _tell("ours", config.seed, report.step, report.metrics.reward_mean or 0.0)


def _train_trl(work: Task, order: dict[str, Any]) -> None:
    python = TRL_PYTHON if TRL_PYTHON.exists() else Path(sys.executable)
    with running("learning_trl", python, json.dumps(order)) as side:
        for _ in range(work.steps):
            step = side.hear("step")
            _tell("trl", order["seed"], step["step"], step["reward"])
        if not side.hear("end")["same_prompts"]:
            raise SystemExit("TRL asked its model other prompts than ours.")


def _held_out(policy: Policy, work: Task, *, tuned: bool) -> list[float]:
    """Return the mean reward of each held-out item, at the temperature of training."""
    report = evaluate(
        policy,
        prompts=_prompts(policy, work.held_out),
        score=_Score(work, {"held_out": work.held_out}),
        split="held_out",
        step=0,
        samples=work.held_out_answers,
        max_completion_tokens=work.answer_tokens,
        temperature=1.0,
        seed=HELD_OUT_SEED,
        adapter=tuned,
    )
    values = [scored.reward or 0.0 for scored in report.rollouts]
    means: list[float] = np.array(values).reshape(len(work.held_out), -1).mean(axis=1).tolist()
    return means


def _prompts(policy: Policy, items: Sequence[Item]) -> list[Prompt]:
    return [Prompt(index, _tokens(policy, item.asked)) for index, item in enumerate(items)]


def _tokens(policy: Policy, asked: Asked) -> tuple[int, ...]:
    if isinstance(asked, str):
        return tuple(policy.tokenizer(asked).input_ids)
    return policy.encode_chat(asked)


def interval(values: Any) -> dict[str, Any]:
    """Return the mean over seeds and items and its 95% interval. Shapes: [seeds, items]."""
    seeds, items = values.shape
    draw = np.random.default_rng(0)
    means = np.empty(BOOTSTRAPS)
    for index in range(BOOTSTRAPS):
        chosen = values[draw.integers(seeds, size=seeds)].mean(axis=0)
        means[index] = chosen[draw.integers(items, size=items)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "mean": round(float(values.mean()), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        "by_seed": [round(float(mean), 4) for mean in values.mean(axis=1)],
    }


def verdict_of(gains: dict[str, Any], difference: dict[str, Any]) -> str:
    if all(gain["ci95"][0] <= 0 for gain in gains.values()):
        return "not shown"
    low, high = difference["ci95"]
    if high < 0:
        return "worse than TRL"
    return "better than TRL" if low > 0 else "not worse than TRL"


def _tell(side: str, seed: int, step: int, reward: float) -> None:
    print(f"  {side} seed {seed} step {step} reward {reward:.3f}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("letter", "sums", "orders", "genes"), nargs="*", default=[])
    parser.add_argument("--model", type=Path, help="a model folder; by default the model store's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--curve", action="store_true", help="print the sample project's curve too")
    parser.add_argument("--settings", type=json.loads, default={}, help="TRL's batch and checkpointing, JSON")
    arguments = parser.parse_args()
    if len(set(arguments.seeds)) < 2:
        parser.error("an interval needs at least two seeds")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

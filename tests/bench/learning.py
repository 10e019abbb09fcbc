"""Whether the engine learns as well as TRL from equally many answers, and the sample project's own curve.

Both sides start from one model, with one prompt, rank and learning rate, and nothing that constrains answers;
each has the algorithm its defaults have. The tuned adapters of both, and the base, are then asked the same
held-out items by one sampler. Intervals are a bootstrap over seeds and items. A difference below TRL that its
interval does not explain is a failed claim; where neither side rises over its base the line says "not shown".
Run by `make bench-learning`; `--task genes` is for a GPU.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from app.core.methods import learning_rate
from app.core.settings import Settings
from tests.bench.engine import TRL_PYTHON
from tests.bench.engine_sides import running
from tests.bench.engine_work import ALPHA, RANK
from tests.bench.learning_tasks import ROOT, Asked, Item, Task, task
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
    model = arguments.model or fetch_default(Settings().models)
    held = True
    if not arguments.curve:
        held = compare(task(arguments.task), model, arguments)
    if arguments.curve or arguments.task == "sums":
        curve(model)
    return 0 if held else 1


def compare(work: Task, model: Path, arguments: argparse.Namespace) -> bool:
    """Train both sides with each seed, print the line, and say whether ours is not worse."""
    rewards: dict[str, list[list[float]]] = {"base": [], "ours": [], "trl": []}
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        for seed in arguments.seeds:
            judge = _load(work, model, seed)
            base = rewards["base"][0] if rewards["base"] else _held_out(judge, work, tuned=False)
            rewards["base"].append(base)
            rewards["ours"].append(_train_ours(judge, work, seed))
            rate = _config(work, judge.parameter_count, seed).learning_rate
            order = {"task": work.name, "model": str(model), "seed": seed, "rate": rate}
            _train_trl(work, {**order, "folder": str(folder / f"{seed}"), "settings": arguments.settings})
            judge.load_adapter(folder / f"{seed}")
            rewards["trl"].append(_held_out(judge, work, tuned=True))
    line = {
        "task": work.name,
        "model": model.name,
        "steps": work.steps,
        "samples": work.steps * work.prompts * work.answers,
        "learning_rate": rate,
        "seeds": arguments.seeds,
        "items": len(work.held_out),
        **{side: _interval(np.array(values)) for side, values in rewards.items()},
    }
    sides = {side: np.array(values) for side, values in rewards.items()}
    gains = {side: _interval(sides[side] - sides["base"]) for side in ("ours", "trl")}
    difference = _interval(sides["ours"] - sides["trl"])
    line |= {f"{side}_gain": gain for side, gain in gains.items()} | {"ours_minus_trl": difference}
    line["verdict"] = _verdict(gains, difference)
    print("LEARNING", json.dumps(line), flush=True)
    return line["verdict"] != "worse than TRL"


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


def _train_ours(policy: Policy, work: Task, seed: int) -> list[float]:
    run = Reinforcement(
        policy,
        train_prompts=_prompts(policy, work.train),
        valid_prompts=[],
        score=_Score(work, {"train": work.train}),
        config=_config(work, policy.parameter_count, seed),
    )
    for report in run.steps():
        _tell("ours", seed, report.step, report.metrics.reward_mean or 0.0)
    return _held_out(policy, work, tuned=True)


def _train_trl(work: Task, order: dict[str, Any]) -> None:
    python = TRL_PYTHON if TRL_PYTHON.exists() else Path(sys.executable)
    with running("learning_trl", python, json.dumps(order), None) as side:
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


def _interval(values: Any) -> dict[str, Any]:
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


def _verdict(gains: dict[str, Any], difference: dict[str, Any]) -> str:
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
    parser.add_argument("--task", choices=("sums", "orders", "genes"), default="sums")
    parser.add_argument("--model", type=Path, help="a model folder; by default the model store's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--curve", action="store_true", help="the sample project's curve alone")
    parser.add_argument("--settings", type=json.loads, default={}, help="TRL's batch and checkpointing, JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

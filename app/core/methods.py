"""Method specs: the hyperparameters of reinforcement fine-tuning, and how every `auto` becomes a number.

Here and nowhere else. `parse_hyperparameters` serves job creation, `resolve` the trainer before step 1.

Source: OpenAI's fine-tuning API reference (names and ranges); the `auto` rules are ours,
argued in docs/decisions/auto-hyperparameters.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.core.refusals import invalid, refuse_unknown, wrong_type, wrong_value

REASONING_EFFORTS = ("default", "low", "medium", "high")


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One hyperparameter: its type and range, and whether OpenAI has it too."""

    name: str
    kind: Literal["integer", "number"]
    low: float
    high: float = math.inf
    above_low: bool = False
    extension: bool = False

    def parse(self, value: object, param: str) -> int | float | Literal["auto"]:
        """Return the value, or raise InvalidRequest naming `param` and the range."""
        if value is None or value == "auto":
            return "auto"
        if isinstance(value, bool) or not isinstance(value, int | float):
            wanted = "an integer" if self.kind == "integer" else "a number"
            raise wrong_type(f"{wanted} or 'auto'", value, param)
        if self.kind == "integer":
            if value != math.floor(value):
                raise wrong_type("an integer or 'auto'", value, param)
            value = int(value)
        too_low = value <= self.low if self.above_low else value < self.low
        if too_low or value > self.high:
            raise invalid(f"{value!r} must be {self.range_text()}, or 'auto'", param)
        return value

    def range_text(self) -> str:
        """Say the range in words."""
        start = f"greater than {self.low:g}" if self.above_low else f"at least {self.low:g}"
        return start if math.isinf(self.high) else f"{start} and at most {self.high:g}"


REINFORCEMENT: tuple[Hyperparameter, ...] = (
    Hyperparameter("batch_size", "integer", 1, 256),
    Hyperparameter("learning_rate_multiplier", "number", 0, 10_000, above_low=True),
    Hyperparameter("n_epochs", "integer", 1, 50),
    Hyperparameter("eval_interval", "integer", 1, 1_000_000),
    Hyperparameter("eval_samples", "integer", 1, 1_000),
    Hyperparameter("compute_multiplier", "number", 0.00001, 10, above_low=True),
    Hyperparameter("samples_per_prompt", "integer", 2, 1_024, extension=True),
    Hyperparameter("max_completion_tokens", "integer", 1, 131_072, extension=True),
    Hyperparameter("temperature", "number", 0, 2, above_low=True, extension=True),
    Hyperparameter("lora_rank", "integer", 1, 512, extension=True),
    Hyperparameter("kl_beta", "number", 0, 100, extension=True),
)


def parse_hyperparameters(value: object, *, param: str) -> dict[str, Any]:
    """Return the hyperparameters as a job echoes them: OpenAI's keys always, extensions only if set.

    Raises: InvalidRequest naming the key and its range.
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise wrong_type("an object", value, param)
    refuse_unknown(value, {h.name for h in REINFORCEMENT} | {"reasoning_effort"}, f"{param}.")
    parsed: dict[str, Any] = {
        spec.name: spec.parse(value.get(spec.name), f"{param}.{spec.name}")
        for spec in REINFORCEMENT
        if not spec.extension or value.get(spec.name) is not None
    }
    effort = value.get("reasoning_effort") or "default"
    if effort not in REASONING_EFFORTS:
        raise wrong_value(str(effort), REASONING_EFFORTS, f"{param}.reasoning_effort")
    parsed["reasoning_effort"] = effort
    return parsed


@dataclass(frozen=True, slots=True)
class Facts:
    """What `auto` depends on."""

    train_rows: int
    valid_rows: int
    parameters: int
    constrained: bool


def resolve(requested: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Return every hyperparameter as a number (and `total_steps`), each `auto` by its rule."""

    def chosen(name: str, automatic: float) -> Any:
        value = requested.get(name, "auto")
        return automatic if value in (None, "auto") else value

    multiplier = chosen("compute_multiplier", 1)
    # Small sets get small steps, so that there are steps to learn in; large ones a steadier gradient.
    automatic_batch = 8 if facts.train_rows < 1_000 else 16 if facts.train_rows < 10_000 else 32
    batch = min(chosen("batch_size", automatic_batch), max(1, facts.train_rows))
    per_epoch = math.ceil(facts.train_rows / batch)
    epochs = chosen("n_epochs", min(10, max(1, math.ceil(20 / per_epoch))))
    total = per_epoch * epochs
    return {
        "batch_size": batch,
        "learning_rate_multiplier": chosen("learning_rate_multiplier", 1),
        "n_epochs": epochs,
        "eval_interval": chosen("eval_interval", min(25, math.ceil(total / 4))),
        "eval_samples": chosen("eval_samples", min(8, max(1, math.ceil(50 / max(1, facts.valid_rows))))),
        "compute_multiplier": multiplier,
        "reasoning_effort": requested.get("reasoning_effort", "default"),
        "samples_per_prompt": chosen("samples_per_prompt", max(2, round(8 * multiplier))),
        "max_completion_tokens": chosen("max_completion_tokens", 256 if facts.constrained else 512),
        "temperature": chosen("temperature", 1),
        "lora_rank": chosen("lora_rank", 16),
        "kl_beta": chosen("kl_beta", 0),
        "total_steps": total,
    }


def learning_rate(parameters: int, multiplier: float) -> float:
    """Return the LoRA learning rate: 1e-4 at 135 M parameters, falling with their fourth root.

    Formula: 1e-4 · (1.35e8 / N)^(1/4) · multiplier; 3.6e-5 at 8 B.
    Source: LoRA wants about ten times the rate of full fine-tuning, less as width grows
    (Thinking Machines, *LoRA Without Regret*); the constant is measured on the sample project.
    """
    return float(1e-4 * (1.35e8 / max(parameters, 1)) ** 0.25 * multiplier)

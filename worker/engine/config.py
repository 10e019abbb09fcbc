"""The numbers of one run: every `auto` is resolved before they get here.

Checked when built, written into each checkpoint's manifest, and compared on resume.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from worker.engine.advantages import ESTIMATORS


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what a run computes.

    Memory budgets are part of it, since they choose waves and micro-batches.

    Units: `micro_batch_tokens` are packed tokens of one forward and backward; `sampling_cache_mib` is the
    memory for keys and values of one sampling wave, `tape_mib` that for
    what sampling computed and training need not compute again; `learning_rate` is AdamW's, constant.

    `advantage` is one of `advantages.ESTIMATORS`; `importance_cap` is set where another program samples.
    """

    seed: int
    batch_size: int
    samples_per_prompt: int
    total_steps: int
    max_completion_tokens: int
    temperature: float = 1.0
    learning_rate: float = 1e-4
    lora_rank: int = 16
    lora_alpha: int | None = None
    kl_beta: float = 0.0
    eval_interval: int = 1
    eval_samples: int = 1
    eval_temperature: float = 1.0
    advantage: str = "group_mean"
    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_cap: float | None = None
    max_grad_norm: float = 1.0
    threads: int | None = None
    micro_batch_tokens: int = 2048
    sampling_cache_mib: int = 2048
    tape_mib: int = 2048

    def __post_init__(self) -> None:
        if self.lora_alpha is None:
            object.__setattr__(self, "lora_alpha", 2 * self.lora_rank)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for name in ("temperature", "learning_rate", "max_grad_norm", "clip_low", "clip_high"):
            if not _finite(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)!r}")
        for name in ("kl_beta", "eval_temperature"):
            if not _finite(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"{name} must be a number of at least 0, not {getattr(self, name)!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads!r}")
        if self.advantage not in ESTIMATORS:
            raise ValueError(f"advantage must be one of {', '.join(ESTIMATORS)}, not {self.advantage!r}")
        if self.importance_cap is not None and (not _finite(self.importance_cap) or self.importance_cap < 1):
            raise ValueError(f"importance_cap must be a number of at least 1, not {self.importance_cap!r}")
        if self.clip_low >= 1:
            raise ValueError(f"clip_low must be below 1, not {self.clip_low!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from `to_dict`'s output.

        Raises: ValueError for a name that is not a setting or a value out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        return cls(**values)


_LEAST = {
    "seed": 0,
    "batch_size": 1,
    "samples_per_prompt": 2,
    "total_steps": 1,
    "max_completion_tokens": 1,
    "lora_rank": 1,
    "lora_alpha": 1,
    "eval_interval": 1,
    "eval_samples": 1,
    "micro_batch_tokens": 1,
    "sampling_cache_mib": 1,
    "tape_mib": 0,
}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

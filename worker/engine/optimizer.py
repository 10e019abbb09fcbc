"""AdamW on the adapter, and the guard that keeps numbers finite.

A step whose loss or gradient is not finite changes nothing, and weights that give no finite numbers go back
to the last that did; a second failure within ten steps goes back too, and on at half the rate; a third ends
the run. Driven by `reinforcement.py`; its state is part of every checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine.config import TrainingConfig
from worker.engine.errors import NumericalInstability
from worker.engine.policy import Policy

_WINDOW = 10
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class GuardState:
    """The guard's memory: how many failures in a row, each within ten steps of the one before, and where."""

    failures: int = 0
    last_failure: int = 0
    learning_rate_scale: float = 1.0
    updates: int = 0


class Optimizer:
    """The adapter's optimizer; `apply` and `fail` are the only ways its state changes."""

    def __init__(self, policy: Policy, config: TrainingConfig) -> None:
        self._parameters = policy.adapter
        self._config = config
        self.state = GuardState()
        # The weights before the latest update: those that last gave finite numbers.
        self._good = self._copy()
        self._adam = self._fresh()

    @property
    def learning_rate(self) -> float:
        return self._config.learning_rate * self.state.learning_rate_scale

    def apply(self) -> float | None:
        """Make one update from the gradients at hand; return their norm, or None where nothing was finite.

        On None the weights are as they were.
        """
        parameters = list(self._parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        if not torch.isfinite(norm):
            return None
        before = self._copy()
        self._adam.step()
        self.state.updates += 1
        self._adam.zero_grad(set_to_none=True)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            self._restore(before)
            self._restart()
            return None
        self._good = before
        return float(norm)

    def fail(self, step: int, *, weights: bool = False) -> str:
        """Count a step without finite numbers; return what was done about it.

        `weights`: the weights gave them, so they go back at once.
        Raises: NumericalInstability at the third within reach of each other.
        """
        state = self.state
        near = state.failures and step - state.last_failure < _WINDOW
        state.failures = state.failures + 1 if near else 1
        state.last_failure = step
        self._adam.zero_grad(set_to_none=True)
        if state.failures >= 3:
            raise NumericalInstability(
                f"Training stopped giving finite numbers at step {step}, again after a roll-back at half the "
                "learning rate. Lower the learning rate, or look for extreme rewards."
            )
        if state.failures == 1 and not weights:
            return "the update was skipped"
        self._restore(self._good)
        if state.failures > 1:
            state.learning_rate_scale /= 2
        self._restart()
        halved = " and the learning rate halved" if state.failures > 1 else ""
        return f"the weights were rolled back{halved}"

    def tensors(self) -> dict[str, Tensor]:
        """Return everything a checkpoint must hold beside the adapter, by name."""
        saved = {f"good.{name}": tensor for name, tensor in self._good.items()}
        for name, parameter in self._parameters.items():
            moments = self._adam.state.get(parameter, {})
            saved |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moment in moments}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in saved.items()}

    def load(self, tensors: Mapping[str, Tensor], state: GuardState) -> None:
        """Take the state of a checkpoint; the adapter's weights are loaded already."""
        self.state = state
        self._adam = self._fresh()
        for name, parameter in self._parameters.items():
            self._good[name] = tensors[f"good.{name}"].to(parameter.device, copy=True)
            if f"exp_avg.{name}" in tensors:
                moments: dict[str, Any] = {
                    moment: tensors[f"{moment}.{name}"].to(parameter.device, copy=True) for moment in _MOMENTS
                }
                self._adam.state[parameter] = {"step": torch.tensor(float(state.updates)), **moments}

    def _fresh(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self._parameters.values(), lr=self.learning_rate, weight_decay=0.0)

    def _restart(self) -> None:
        # The moments go too: that is where a bad gradient lives longest.
        self.state.updates = 0
        self._adam = self._fresh()

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def _restore(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])

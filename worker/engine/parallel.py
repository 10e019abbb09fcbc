"""Several processes, one run: each samples, grades and trains its share of a step's prompts.

What crosses between processes is small: answers and rewards, and the gradient of the adapter alone; base
weights and activations stay. Every process then makes the same update, so all hold the same weights and any
of them may save. Used by `reinforcement.py`; `torchrun` starts the processes and `torch.distributed` joins
them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from worker.engine.errors import EngineError, NonFinite
from worker.engine.types import Rollout

Thing = TypeVar("Thing")


class Alone:
    """One process: every share is the whole."""

    rank = 0
    size = 1

    def own(self, things: Sequence[Thing]) -> list[Thing]:
        """Return this process's share, every `size`-th from `rank` on."""
        return list(things[self.rank :: self.size])

    def all(self, own: Sequence[Thing]) -> list[Thing]:
        """Return everybody's shares put back in the order `own` took them from."""
        return list(own)

    def all_answers(
        self, rollouts: Sequence[Rollout], rewards: Sequence[float | None], per_prompt: int
    ) -> tuple[list[Rollout], list[float | None]]:
        """Return the answers to all prompts, in the prompts' order, from those to this process's share."""
        pairs = list(zip(rollouts, rewards, strict=True))
        groups = [pairs[start : start + per_prompt] for start in range(0, len(pairs), per_prompt)]
        everything = [pair for group in self.all(groups) for pair in group]
        return [rollout for rollout, _ in everything], [reward for _, reward in everything]

    def attempt(self, work: Callable[[], Thing]) -> Thing:
        """Do this process's share of some work; where one fails, all do, since none may wait for it.

        Raises: what the work raises, where it is this process's; else NonFinite when the numbers of another
        were not finite, EngineError when it failed in any other way.
        """
        done: list[Thing] = []
        failure: Exception | None = None
        try:
            done = [work()]
        except Exception as error:  # boundary: the others are told before it goes on
            failure = error
        # As text: an exception of a grader's need not come through whole.
        told = self.all([] if failure is None else [(isinstance(failure, NonFinite), str(failure))])
        fatal = [text for is_non_finite, text in told if not is_non_finite]
        if failure is not None and not (fatal and isinstance(failure, NonFinite)):
            try:
                raise failure
            finally:
                failure = None  # it knows this frame: together they would keep the group alive
        if fatal:
            raise EngineError(f"another process of this run failed: {fatal[0]}")
        if told:
            raise NonFinite(told[0][1])
        return done[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter], share: float) -> None:
        """Weigh this process's gradients by its share and make them, everywhere, the sum of all."""


class Together(Alone):
    """The processes of a group; all call the same methods in the same order."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def all(self, own: Sequence[Thing]) -> list[Thing]:
        shares: list[list[Thing]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shares, list(own), group=self._group)
        longest = max(len(share) for share in shares)
        return [share[place] for place in range(longest) for share in shares if place < len(share)]

    def add_gradients(self, parameters: Iterable[nn.Parameter], share: float) -> None:
        # One exchange for all: hundreds of thin matrices would wait for each other one by one.
        parameters = list(parameters)
        flat = torch.cat(
            [
                parameter.new_zeros(parameter.numel())
                if parameter.grad is None
                else parameter.grad.flatten() * share
                for parameter in parameters
            ]
        )
        dist.all_reduce(flat, group=self._group)
        parts = torch.split(flat, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

"""What sampling computed, kept so that training needs no second forward.

For one update per rollout the weights that train are those that sampled, so every product x Wᵀ of the forward
is known already, and so is what each distribution drawn from teaches: `llama.py` and the decoder record them,
training reads them back. A tape takes one sampling; beyond its budget, or where memory runs out, it gives
everything up and training computes again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.drawing import Spread
from worker.engine.types import Rollout

# Distributions averaged in one product.
_ROWS = 128

Products = tuple[Tensor, ...]
"""What one layer computed for some tokens: one [tokens, width] tensor for each of its products."""


@dataclass(frozen=True, slots=True)
class Record:
    """Where a tape holds an answer.

    `lines` has one for each token the model read, the prompt's first; `draws` one for each token that was
    drawn and not forced, by its place in the answer.
    """

    lines: Sequence[int]
    draws: Mapping[int, int]


class Tape:
    """`lines` counts the tokens recorded so far: a token's line is its place in the order of recording.

    `rows` holds, for (item, sample), where its answer was recorded. `spilled` says that everything was given
    up; `ran_out` that it was for want of memory, not of budget.
    """

    def __init__(self, budget: int) -> None:
        self.lines = 0
        self.rows: dict[tuple[int, int], Record] = {}
        self.spilled = budget <= 0
        self.ran_out = False
        self._budget = budget
        self._room = 0  # lines
        self._layers: list[Products] = []
        self._draws = 0
        self._waiting: list[Spread] = []
        self._means: list[Tensor] = []
        self._entropies: list[Tensor] = []

    # While sampling

    def expect(self, lines: int, line_bytes: int) -> None:
        """Hear, before the first forward, how many lines there will be at most, and one's size in all layers.

        What the budget allows of them is set aside; a CPU gives memory to what is written alone.
        """
        if self.lines or self._layers:
            raise RuntimeError("a tape takes one sampling, and this one has begun")
        self._room = min(lines, self._budget // max(1, line_bytes))

    def record(self, layer: int, products: Products) -> None:
        """Keep what a layer computed for the tokens of one forward."""
        end = self.lines + len(products[0])
        if not self.spilled and end > self._room:
            self.give_up()
        if self.spilled:
            return
        if layer == len(self._layers):
            self._layers.append(
                tuple(product.new_empty(self._room, product.shape[1]) for product in products)
            )
        for kept, product in zip(self._layers[layer], products, strict=True):
            kept[self.lines : end] = product

    def end_forward(self, tokens: int) -> None:
        """Count the lines that every layer has now recorded."""
        self.lines += tokens

    def record_draws(self, spread: Spread, head: Tensor) -> int:
        """Keep what the distributions tokens were drawn from teach; return the first one's number.

        Shapes: head W [V, H].
        """
        first = self._draws
        self._draws += len(spread.totals)
        if not self.spilled:
            self._waiting.append(spread)
            self._entropies.append(spread.entropies)
            if sum(len(one.totals) for one in self._waiting) >= _ROWS:
                self._average(head)
        return first

    def _average(self, head: Tensor) -> None:
        """Reduce the distributions that wait to their means of the head's rows, in one product."""
        if self._waiting:
            weights = torch.cat([spread.weights for spread in self._waiting])
            totals = torch.cat([spread.totals for spread in self._waiting])
            self._means.append((weights.to(head.dtype) @ head).float().div_(totals[:, None]))
            self._waiting.clear()

    def seal(self, head: Tensor) -> None:
        """Put together what was kept of the draws, once nothing more is recorded."""
        self._average(head)
        for parts in (self._means, self._entropies):
            parts[:] = [torch.cat(parts)] if parts else []

    def give_up(self, *, ran_out: bool = False) -> None:
        """Let go of everything and record no more: training computes again."""
        self.spilled = True
        self.ran_out = ran_out
        for kept in (self._layers, self._waiting, self._means, self._entropies):
            kept.clear()

    # While training

    def record_of(self, rollout: Rollout) -> Record | None:
        """Return where an answer and the prompt before it lie, or None where they were not kept."""
        if self.spilled:
            return None
        return self.rows.get((rollout.item_index, rollout.sample_index))

    def read(self, layer: int, lines: Tensor, only: Sequence[int] | None = None) -> Products:
        """Return a layer's products for these lines: all of them, or `only` those of these numbers."""
        kept = self._layers[layer]
        chosen = kept if only is None else [kept[number] for number in only]
        return tuple(product.index_select(0, lines) for product in chosen)

    def entropies(self, draws: Tensor) -> Tensor:
        """Return the entropies of these draws' distributions: [T]."""
        return self._entropies[0][draws]

    def slopes(self, draws: Tensor, targets: Tensor, head: Tensor) -> Tensor:
        """Return d log p(target) / d hidden at temperature 1: W[target] - sum over the vocabulary of p W.

        Shapes: draws [T], targets [T], head W [V, H] -> [T, H], float32.
        """
        return head[targets].float().sub_(self._means[0][draws])

"""What sampling computed, kept so that training needs no second forward.

For one update per rollout the weights that train are those that sampled, so every product x Wᵀ of the forward
and every distribution drawn from is known already: `llama.py` and the decoder record them, training reads
them back. A tape belongs to one step; beyond its budget it gives everything up and training computes again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.drawing import Spread
from worker.engine.types import Rollout

_ROWS = 256

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

    `rows` holds, for (item, sample), where its answer was recorded.
    """

    def __init__(self, budget: int) -> None:
        self.lines = 0
        self.rows: dict[tuple[int, int], Record] = {}
        self.spilled = budget <= 0
        self._left = budget
        self._parts: list[list[Products]] = []
        self._whole: list[Products] = []
        self._draws = 0
        self._spreads: list[Spread] = []

    # While sampling

    def record(self, layer: int, products: Products) -> None:
        """Keep what a layer computed for the tokens of one forward."""
        self._spend(sum(product.nbytes for product in products))
        if self.spilled:
            return
        if layer == len(self._parts):
            self._parts.append([])
        self._parts[layer].append(products)

    def end_forward(self, tokens: int) -> None:
        """Count the lines that every layer has now recorded."""
        self.lines += tokens

    def record_draws(self, spread: Spread) -> int:
        """Keep the distributions tokens were drawn from; return the first one's number."""
        first = self._draws
        self._draws += len(spread.totals)
        self._spend(spread.weights.nbytes)
        if not self.spilled:
            self._spreads.append(spread)
        return first

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            self.give_up()

    def give_up(self) -> None:
        """Let go of everything and record no more: training computes again."""
        self._left = -1
        self.spilled = True
        self._parts.clear()
        self._whole.clear()
        self._spreads.clear()

    # While training

    def seal(self) -> None:
        """Put each layer's parts together, once nothing more is recorded."""
        for layer, parts in enumerate(self._parts):
            if parts:
                self._whole.append(tuple(torch.cat(same) for same in zip(*parts, strict=True)))
                self._parts[layer] = []

    def record_of(self, rollout: Rollout) -> Record | None:
        """Return where an answer and the prompt before it lie, or None where they were not kept."""
        if self.spilled:
            return None
        return self.rows.get((rollout.item_index, rollout.sample_index))

    def read(self, layer: int, lines: Tensor) -> Products:
        """Return a layer's products for these lines."""
        return tuple(product[lines] for product in self._whole[layer])

    def entropies(self, draws: Tensor) -> Tensor:
        """Return the entropies of these draws' distributions: [T]."""
        return torch.cat([spread.entropies for spread in self._spreads])[draws]

    def slopes(self, draws: Tensor, targets: Tensor, head: Tensor) -> Tensor:
        """Return d log p(target) / d hidden at temperature 1: W[target] - sum over the vocabulary of p W.

        Shapes: draws [T], targets [T], head W [V, H] -> [T, H], float32.
        """
        slopes = head[targets].float()
        totals = torch.cat([spread.totals for spread in self._spreads])
        order = draws.argsort()
        ends = torch.tensor([len(spread.totals) for spread in self._spreads]).cumsum(0)
        cuts = [0, *torch.searchsorted(draws[order], ends.to(draws.device)).tolist()]
        # So many rows make one product that runs at full rate; the same memory takes them every time.
        most = _ROWS + max(len(spread.totals) for spread in self._spreads)
        gathered = self._spreads[0].weights.new_empty(most, head.shape[0])
        filled, start = 0, 0
        for index, spread in enumerate(self._spreads):
            places = order[cuts[index] : cuts[index + 1]]
            rows = draws[places] - (ends[index] - len(spread.totals))
            torch.index_select(spread.weights, 0, rows, out=gathered[filled : filled + len(rows)])
            filled += len(rows)
            if filled >= _ROWS or index == len(self._spreads) - 1:
                means = gathered[:filled].to(head.dtype) @ head
                here = order[start : start + filled]
                slopes[here] -= means.float() / totals[draws[here], None]
                filled, start = 0, start + filled
        return slopes

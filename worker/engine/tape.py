"""The products of sampling, kept so that training needs no second forward.

For one update per rollout the weights that train are those that sampled, so every product x Wᵀ of the forward
is known already: `llama.py` records them while it decodes and reads them back while it trains. A tape belongs
to one step; beyond its budget it gives everything up and training computes again.
"""

import torch
from torch import Tensor

from worker.engine.types import Rollout

Products = tuple[Tensor, ...]
"""What one layer computed for some tokens: one [tokens, width] tensor for each of its products."""


class Tape:
    """`lines` counts the tokens recorded so far: a token's line is its place in the order of recording.

    `rows` holds, for (item, sample), the line of every token the model read: the prompt's and the answer's.
    """

    def __init__(self, budget: int) -> None:
        self.lines = 0
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.spilled = False
        self._left = budget
        self._parts: list[list[Products]] = []
        self._whole: list[Products] = []

    def record(self, layer: int, products: Products) -> None:
        """Keep what a layer computed for the tokens of one forward."""
        if self.spilled:
            return
        self._left -= sum(product.nbytes for product in products)
        if self._left < 0:
            self.spilled = True
            self._parts.clear()
            return
        if layer == len(self._parts):
            self._parts.append([])
        self._parts[layer].append(products)

    def end_forward(self, tokens: int) -> None:
        """Count the lines that every layer has now recorded."""
        self.lines += tokens

    def seal(self) -> None:
        """Put each layer's parts together, once nothing more is recorded."""
        for layer, parts in enumerate(self._parts):
            if parts:
                self._whole.append(tuple(torch.cat(same) for same in zip(*parts, strict=True)))
                self._parts[layer] = []

    def lines_of(self, rollout: Rollout) -> list[int] | None:
        """Return the lines of an answer and the prompt before it, or None where they were not kept."""
        if self.spilled:
            return None
        return self.rows.get((rollout.item_index, rollout.sample_index))

    def read(self, layer: int, lines: Tensor) -> Products:
        """Return a layer's products for these lines."""
        return tuple(product[lines] for product in self._whole[layer])

"""Token trees in one row without padding: a common prefix, then per prompt a trunk and branches.

    [common | trunk 1 | branch 1.1 | branch 1.2 | ... | trunk 2 | branch 2.1 | ...]

Every token appears once, however many answers stand on it. Positions say where a token stands in its own
text. Plain layout, no model: used by the sampler (trunks only) and by the update; `attention.py` reads the
spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt's text after the common prefix, and the continuations that share it."""

    trunk: Tokens
    branches: tuple[Tokens, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tree lies in the row: tokens start..stop, the trunk first, then each branch."""

    start: int
    stop: int
    trunk: int
    branch_starts: tuple[int, ...]


@dataclass(slots=True)
class Packed:
    """A row of trees. Shapes: `token_ids` and `positions` [N]; the first `common` tokens are everyone's."""

    token_ids: Tensor
    positions: Tensor
    common: int
    spans: tuple[Span, ...]
    _branch_of: Tensor = field(repr=False)
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict, repr=False)
    _cuts: list[int] = field(default_factory=list, repr=False)

    @property
    def cuts(self) -> list[int]:
        """The lengths of the row's pieces: the common prefix, and of each tree its trunk and its branches.

        A tree whose branches are not attended by themselves is one piece.
        """
        if not self._cuts:
            self._cuts.append(self.common)
            for index, span in enumerate(self.spans):
                beside = sum(self.branches(index))
                self._cuts.append(span.stop - span.start - beside)
                if beside:
                    self._cuts.append(beside)
        return self._cuts

    def branches(self, span_index: int) -> list[int]:
        """Return the lengths of a tree's branches where each is attended by itself, else nothing.

        A mask over the whole tree computes what no branch sees of the others. Where branches are most of the
        tree that is more work than computing what stands before them once for each.
        """
        span = self.spans[span_index]
        if span.stop - span.start - span.trunk <= self.common + span.trunk:
            return []
        ends = [*span.branch_starts[1:], span.stop]
        return [end - start for start, end in zip(span.branch_starts, ends, strict=True)]

    def mask(self, span_index: int, window: int | None) -> Tensor:
        """Return which keys each token of a tree may see: [n, common + n], true where seen.

        A token sees the common prefix, its trunk and its own branch, never what comes later; with a sliding
        window only keys fewer than `window` positions back. Where branches go by themselves, n is the trunk.
        """
        key = (span_index, window)
        if key not in self._masks:
            span = self.spans[span_index]
            own = slice(span.start, span.stop - sum(self.branches(span_index)))
            branch = self._branch_of[own]
            order = torch.arange(own.stop - own.start, device=branch.device)
            seen = (order[:, None] >= order) & ((branch == 0) | (branch[:, None] == branch))
            seen = torch.cat([seen.new_ones(len(order), self.common), seen], dim=1)
            if window is not None:
                keys = torch.cat([self.positions[: self.common], self.positions[own]])
                seen &= self.positions[own][:, None] - keys < window
            self._masks[key] = seen
        return self._masks[key]

    def branch_mask(self, span_index: int, window: int | None) -> Tensor:
        """Return which keys the tokens of a branch may see: [L, common + trunk + L], true where seen.

        What pads a shorter branch comes behind all of its tokens, so none of them sees it.
        """
        key = (-1 - span_index, window)
        if key not in self._masks:
            before = self.common + self.spans[span_index].trunk
            longest = max(self.branches(span_index))
            order = torch.arange(before + longest, device=self.token_ids.device)
            seen = order[before:, None] >= order
            if window is not None:
                seen &= order[before:, None] - order < window
            self._masks[key] = seen
        return self._masks[key]


def pack(common: Tokens, trees: Sequence[Tree], device: torch.device | None = None) -> Packed:
    """Lay trees out in one row behind their common prefix."""
    token_ids = list(common)
    positions = list(range(len(common)))
    branch_of = [0] * len(common)
    spans = []
    for tree in trees:
        start = len(token_ids)
        fork = len(common) + len(tree.trunk)
        token_ids += tree.trunk
        positions += range(len(common), fork)
        branch_of += [0] * len(tree.trunk)
        starts = []
        for number, branch in enumerate(tree.branches, 1):
            starts.append(len(token_ids))
            token_ids += branch
            positions += range(fork, fork + len(branch))
            branch_of += [number] * len(branch)
        spans.append(Span(start, len(token_ids), len(tree.trunk), tuple(starts)))
    row, where, branches = (
        torch.tensor(values, device=device) for values in (token_ids, positions, branch_of)
    )
    return Packed(row, where, len(common), tuple(spans), branches)


def shared_length(texts: Sequence[Tokens]) -> int:
    """Return how many leading tokens all texts share."""
    # The extremes of the sorted order differ first, so comparing those two compares all.
    low, high = min(texts), max(texts)
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    return length


def common_prefix(texts: Sequence[Tokens]) -> int:
    """Return how long a prefix to compute once for all texts, leaving each at least one token of its own.

    A single text shares nothing: its prefix would only be computed in two parts.
    """
    if len(texts) < 2:
        return 0
    return min(shared_length(texts), min(len(text) for text in texts) - 1)

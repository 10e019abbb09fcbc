"""The attention every layer runs here, over token trees or over rows that share prefixes.

transformers hands each layer's queries, keys and values to a registered function, so one function serves
every causal model that uses that interface, without a line of model code. Which keys a token sees is not a
mask the model builds but the layout that `attending()` puts in force. `policy.py` proves on load that a
model's numbers come out the same as with its own attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from worker.engine.errors import UnsupportedModel
from worker.engine.packing import Packed

NAME = "tunesmith"


class Layout(Protocol):
    """What decides which keys a query sees."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: "Rule") -> Tensor:
        """Return the output [N, Hq, D] of queries [Hq, N, D] and their own keys, values [Hkv, N, D]."""


class RowLayout(Layout, Protocol):
    """Keys and values of the rows being decoded, in the decoder's order."""

    def positions(self) -> Tensor:
        """Return the position of each row's next token: [R]."""

    def advance(self) -> None:
        """Count the token just decoded in every row."""

    def keep(self, rows: list[int]) -> None:
        """Drop every row but these."""


class Rule:
    """A layer's own constants: scale, sliding window and soft cap."""

    __slots__ = ("scale", "softcap", "window")

    def __init__(self, scale: float, window: int | None, softcap: float | None) -> None:
        self.scale = scale
        self.window = window
        self.softcap = softcap


class PackedLayout:
    """Attention over a packed row; with `remember` it keeps each layer's keys and values for decoding."""

    def __init__(self, packed: Packed, *, remember: bool = False) -> None:
        self.packed = packed
        self.remember = remember
        self.keys: list[Tensor] = []  # one [Hkv, N, D] a layer
        self.values: list[Tensor] = []
        self.past: Any = None  # what the plain path remembers instead

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        if self.remember:
            self.keys.append(key)
            self.values.append(value)
        repeats = query.shape[0] // key.shape[0]
        key, value = (tensor.repeat_interleave(repeats, dim=0) for tensor in (key, value))
        common = self.packed.common
        parts = []
        if common:
            parts.append(self._common(query[:, :common], key[:, :common], value[:, :common], rule))
        for index, span in enumerate(self.packed.spans):
            fork = span.start + span.trunk
            # A mask over the whole tree computes what no branch sees of the others: where they are most of
            # the tree, each goes by itself.
            stop = fork if span.stop - fork > common + span.trunk else span.stop
            if stop > span.start:
                own = slice(span.start, stop)
                seen_keys = self._behind_common(key[:, own], key)
                seen_values = self._behind_common(value[:, own], value)
                mask = self.packed.mask(index, rule.window)[: stop - span.start, : seen_keys.shape[1]]
                parts.append(attend_where(query[:, own], seen_keys, seen_values, mask, rule))
            if stop < span.stop:
                parts.append(self._branches(index, query, key, value, rule))
        return torch.cat(parts, dim=1).transpose(0, 1)

    def _behind_common(self, own: Tensor, everything: Tensor) -> Tensor:
        common = self.packed.common
        return torch.cat([everything[:, :common], own], dim=1) if common else own

    def _branches(self, index: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return the output of a tree's branches side by side, padded to the longest: [Hq, tokens, D]."""
        span = self.packed.spans[index]
        places, real = self.packed.branches(index)  # [G, L]
        trunk = slice(span.start, span.start + span.trunk)

        def beside(tokens: Tensor) -> Tensor:
            before = self._behind_common(tokens[:, trunk], tokens).expand(len(places), -1, -1, -1)
            return torch.cat([before, tokens[:, places].transpose(0, 1)], dim=2)

        mask = self.packed.branch_mask(index, rule.window)
        out = attend_where(
            query[:, places].transpose(0, 1), beside(key), beside(value), mask, rule
        )  # [G, Hq, L, D]
        return out.transpose(0, 1)[:, real]

    def _common(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        if rule.window is None and rule.softcap is None:
            return F.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True, scale=rule.scale
            )[0]
        order = torch.arange(self.packed.common, device=query.device)
        seen = order[:, None] >= order
        if rule.window is not None:
            seen &= order[:, None] - order < rule.window
        return attend_where(query, key, value, seen, rule)


def attend_where(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, rule: Rule) -> Tensor:
    """Return what queries find among the keys they may see.

    Shapes: query [..., H, N, D], key and value [..., H, M, D], seen [N, M] -> [..., H, N, D].
    """
    if rule.softcap is None:
        if query.dim() == 3:
            return attend_where(query[None], key[None], value[None], seen, rule)[0]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=rule.scale)
    scores = capped(query @ key.transpose(-1, -2) * rule.scale, rule.softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    return scores.float().softmax(-1).to(value.dtype) @ value


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Return cap · tanh(scores / cap), or the scores where there is no cap."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def attending(layout: Layout) -> Iterator[None]:
    """Put a layout in force for the forward passes inside."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def layout_in_force() -> Layout | None:
    """Return the layout that `attending` put in force, None outside one."""
    return _layout.get()


# Arguments that change what attention means and that no layout here knows.
_FOREIGN = ("s_aux", "sinks", "position_bias", "alibi")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    layout = _layout.get()
    foreign = [name for name in _FOREIGN if rest.get(name) is not None]
    if layout is None or foreign:
        reason = f"its attention takes {', '.join(foreign)}" if foreign else "it ran outside a layout"
        raise UnsupportedModel(f"{type(module).__name__}: {reason}")
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise UnsupportedModel(f"{type(module).__name__} does not number its layers")
    rule = Rule(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    return layout.attend(layer, query[0], key[0], value[0], rule)[None], None


AttentionInterface.register(NAME, _attention)

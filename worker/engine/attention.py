"""The attention every layer runs here, over token trees or over rows that share prefixes.

transformers hands each layer's queries, keys and values to a registered function, so one function serves
every causal model that uses that interface, without a line of model code. Which keys a token sees is not a
mask the model builds but the layout that `attending()` puts in force. `policy.py` proves on load that a
model's numbers come out the same as with its own attention.
"""

from collections.abc import Iterator, Sequence
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
        # Cut once: a cut's slope is a join, a slice's or a lookup's a row of zeros for each.
        cuts = (torch.split(every, self.packed.cuts, dim=1) for every in (query, key, value))
        pieces = zip(*cuts, strict=True)
        common_query, common_key, common_value = next(pieces)
        parts = []
        if self.packed.common:
            parts.append(self._common(common_query, common_key, common_value, rule))
        for index in range(len(self.packed.spans)):
            query, key, value = next(pieces)
            if self.packed.common:
                key = torch.cat([common_key, key], dim=1)
                value = torch.cat([common_value, value], dim=1)
            parts.append(attend_where(query, key, value, self.packed.mask(index, rule.window), rule))
            if lengths := self.packed.branches(index):
                mask = self.packed.branch_mask(index, rule.window)
                parts += _attend_beside(next(pieces), lengths, key, value, mask, rule)
        return torch.cat(parts, dim=1).transpose(0, 1)

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


def _attend_beside(
    branches: Sequence[Tensor],
    lengths: Sequence[int],
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    rule: Rule,
) -> list[Tensor]:
    """Return the outputs of branches attended side by side, behind the keys and values that all of them see.

    Shapes: the branches' queries, keys and values [H, sum of lengths, D]; before them key and value
    [H, T, D] -> outputs [H, ., D].
    """
    queries, keys, values = (_stacked(tokens, lengths) for tokens in branches)
    keys = torch.cat([key.expand(len(keys), -1, -1, -1), keys], dim=2)
    values = torch.cat([value.expand(len(values), -1, -1, -1), values], dim=2)
    out = attend_where(queries, keys, values, mask, rule)  # [G, H, L, D]
    if min(lengths) == max(lengths):
        return [out.transpose(0, 1).flatten(1, 2)]
    return [one[:, :length] for one, length in zip(out, lengths, strict=True)]


def _stacked(tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """Lay texts that follow each other side by side: [H, sum of lengths, D] -> [G, H, longest, D]."""
    longest = max(lengths)
    if min(lengths) == longest:
        return tokens.view(len(tokens), len(lengths), longest, -1).transpose(0, 1)
    texts = torch.split(tokens, list(lengths), dim=1)
    return torch.stack([F.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


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

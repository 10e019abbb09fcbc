"""Linear layers with a low-rank adapter: y = x Wᵀ + b + s (x Aᵀ) Bᵀ, the frozen W, and A and B that learn.

One class stands for one layer, or for several that read the same input; the `Mode` all layers of a policy
share says which of the ways is in force. Layers know nothing of models: `policy.py` puts them in, `llama.py`
joins those that belong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which of several adapters each row of a batch goes through.

    Shapes: `shares` [rows, 1, adapters, 1], one where the row is the adapter's; None when one adapter has
    every row.
    """

    names: tuple[str, ...]
    shares: Tensor | None


@dataclass(slots=True)
class Mode:
    """How every layer of a policy computes just now; without a mixture all rows are the base model's."""

    way: Literal["adapted", "base", "merged", "mixed"] = "adapted"
    mixture: Mixture | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """One layer's part of an adapter. Shapes: `down` A [r, in], `up` B [out, r]."""

    down: Tensor
    up: Tensor
    scaling: float

    def to(self, device: torch.device) -> "Adapter":
        """Return it on a device."""
        return Adapter(self.down.to(device), self.up.to(device), self.scaling)


Stack = tuple[Tensor, list[Tensor]]
"""Several adapters of joined layers, for few products: A [in, layers · adapters · r], and of each layer s B
[adapters · r, out]; a smaller rank is filled up with zeros."""


class Product:
    """x Wᵀ + b with a weight that stays for many calls.

    On a CPU the weight is laid out once as the kernel reads it: with 32 rows that is 1.4 to 2 times as fast
    (`docs/decisions/packed-weights.md`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self._packed = _packed(weight)
        self._weight = weight if self._packed is None else None

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: [N, in] -> [N, out]."""
        if self._weight is not None:
            return F.linear(x, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product


def _packed(weight: Tensor) -> Tensor | None:
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ):
        return None
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return None
    # The rows it is laid out for are a hint; other numbers of rows give the same sums, only slower.
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 32)
    return packed


class AdaptedLinear(nn.Module):
    """Takes a linear layer's place. Shapes: x [..., in] -> [..., out]."""

    def __init__(self, linear: nn.Module, rank: int, alpha: int, mode: Mode) -> None:
        super().__init__()
        weight: Any = linear.weight
        # transformers' Conv1D keeps its weight the other way round.
        self.transposed = not isinstance(linear, nn.Linear)
        self.weight = nn.Parameter(
            weight.t().contiguous() if self.transposed else weight, requires_grad=False
        )
        bias: Any = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = self.weight.shape
        self.scaling = alpha / rank
        device = self.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))
        self.mode = mode
        self.others: dict[str, Adapter] = {}  # adapters to serve, by name
        self.product = Joined([self], mode)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return self.product(flat).view(*x.shape[:-1], self.out_features)

    def merged_weight(self) -> Tensor:
        """Return W + s B A, in a tensor of its own."""
        if self.weight.dtype == self.lora_B.dtype:
            return torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scaling)
        sum_ = self.weight.float().addmm_(self.lora_B, self.lora_A, alpha=self.scaling)
        return sum_.to(self.weight.dtype)


class Joined:
    """Layers that read the same input, computed as one product: [N, in] -> [N, out 1 + out 2 + ...].

    Their weights are moved into one tensor of which each layer keeps its slice, so nothing is stored twice.
    """

    def __init__(self, layers: Sequence[AdaptedLinear], mode: Mode) -> None:
        self.layers = tuple(layers)
        self.widths = [layer.out_features for layer in layers]
        self.mode = mode
        self._ready: Product | None = None
        self._stacks: dict[tuple[str, ...], Stack] = {}  # the one used last stands last
        if len(layers) == 1:
            self.weight, self.bias = layers[0].weight.data, layers[0].bias
            return
        self.weight = torch.cat([layer.weight.data for layer in layers])
        for layer, part in zip(layers, torch.split(self.weight, self.widths), strict=True):
            layer.weight.data = part
        self.bias = None
        if any(layer.bias is not None for layer in layers):
            device, dtype = self.weight.device, self.weight.dtype
            zeros = [torch.zeros(width, device=device, dtype=dtype) for width in self.widths]
            self.bias = nn.Parameter(
                torch.cat(
                    [
                        zero if layer.bias is None else layer.bias.data
                        for layer, zero in zip(layers, zeros, strict=True)
                    ]
                ),
                requires_grad=False,
            )

    def __call__(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Compute in the way that is in force; `known` is a result computed before, wanted for its slope."""
        way = self.mode.way
        if way == "adapted":
            return self._adapted(x, known)
        if way == "base" and self._ready is None:
            return F.linear(x, self.weight, self.bias)
        if self._ready is None:
            raise RuntimeError(f"a layer was asked for its {way} product before it was made ready")
        y = self._ready(x)
        if way == "mixed" and self.mode.mixture is not None:
            self._add_mixture(x, y, self.mode.mixture)
        return y

    def ready(self, *, merged: bool) -> None:
        """Lay out the weights for many calls: those of the merged model or those of the base."""
        weight = self.weight
        if merged:
            weight = torch.cat([layer.merged_weight() for layer in self.layers])
        self._ready = Product(weight, self.bias)

    def release(self) -> None:
        """Give back what `ready` laid out."""
        self._ready = None

    def forget(self) -> None:
        """Drop what was stacked of adapters to serve; called whenever one comes or goes."""
        self._stacks.clear()

    def _adapted(self, x: Tensor, known: Tensor | None) -> Tensor:
        parts = [part for layer in self.layers for part in (layer.lora_A, layer.lora_B)]
        scaling = [layer.scaling for layer in self.layers]
        y: Tensor = _Adapted.apply(x, self.weight, self.bias, known, scaling, *parts)  # type: ignore[no-untyped-call]
        return y

    def _add_mixture(self, x: Tensor, y: Tensor, mixture: Mixture) -> None:
        """Add each row's adapter in place.

        Every row is multiplied by every adapter and what is not its own is wiped out: with the few rows of a
        decode step, gathering the rows of each adapter costs more than those thin products.
        """
        down, ups = self._stack(mixture.names)
        inner = x @ down
        if mixture.shares is not None:
            inner.view(len(x), len(ups), len(mixture.names), -1).mul_(mixture.shares)
        start = 0
        for thin, up in zip(inner.chunk(len(ups), dim=1), ups, strict=True):
            y[:, start : start + up.shape[1]].addmm_(thin, up)
            start += up.shape[1]

    def _stack(self, names: tuple[str, ...]) -> Stack:
        stack = self._stacks.pop(names, None)
        if stack is None:
            stack = self._stacked(names)
        # The two used last stay: prompts are read between the steps of rows with other adapters.
        while len(self._stacks) > 1:
            self._stacks.pop(next(iter(self._stacks)))
        self._stacks[names] = stack
        return stack

    def _stacked(self, names: tuple[str, ...]) -> Stack:
        rank = max(layer.others[name].down.shape[0] for layer in self.layers for name in names)
        downs, ups = [], []
        for layer in self.layers:
            own = [layer.others[name] for name in names]
            downs += [F.pad(one.down, (0, 0, 0, rank - len(one.down))) for one in own]
            padded = [F.pad(one.up * one.scaling, (0, rank - one.up.shape[1])) for one in own]
            ups.append(torch.cat(padded, dim=1).t().contiguous().to(self.weight.dtype))
        return torch.cat(downs).t().contiguous().to(self.weight.dtype), ups


class _Adapted(torch.autograd.Function):
    """The product with its adapter, whose gradient costs one large product and thin ones.

    dx = dy W + Σ s (dyᵢ Bᵢ) Aᵢ,  dAᵢ = s (dyᵢ Bᵢ)ᵀ x,  dBᵢ = s dyᵢᵀ (x Aᵢᵀ).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        known: Tensor | None,
        scaling: Sequence[float],
        *parts: Tensor,
    ) -> Tensor:
        ctx.scaling = scaling
        ctx.save_for_backward(x, weight, *parts)
        if known is not None:
            return known.view_as(known)
        downs, ups = parts[::2], parts[1::2]
        y = F.linear(x, weight, bias)
        inner = F.linear(x.float(), torch.cat(downs)) if len(downs) > 1 else F.linear(x.float(), downs[0])
        start = seen = 0
        for up, scale in zip(ups, scaling, strict=True):
            own = y[:, start : start + len(up)]
            thin = inner[:, seen : seen + up.shape[1]]
            if y.dtype == up.dtype:
                own.addmm_(thin, up.t(), alpha=scale)
            else:
                own.add_((thin @ up.t()).to(y.dtype), alpha=scale)
            start += len(up)
            seen += up.shape[1]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parts = ctx.saved_tensors
        downs, ups = parts[::2], parts[1::2]
        slope = grad.float()
        values = x.float()
        inner = F.linear(values, torch.cat(downs))  # [N, Σ r]
        widths = [len(up) for up in ups]
        ranks = [up.shape[1] for up in ups]
        own = torch.split(slope, widths, dim=1)
        thin = torch.cat(
            [(piece @ up).mul_(scale) for piece, up, scale in zip(own, ups, ctx.scaling, strict=True)], dim=1
        )
        down_grads = torch.split(thin.t() @ values, ranks)
        up_grads = [
            (piece.t() @ mine).mul_(scale)
            for piece, mine, scale in zip(own, torch.split(inner, ranks, dim=1), ctx.scaling, strict=True)
        ]
        into = None
        if ctx.needs_input_grad[0]:
            into = grad @ weight
            if into.dtype == thin.dtype:
                into.addmm_(thin, torch.cat(downs))
            else:
                into += (thin @ torch.cat(downs)).to(into.dtype)
        pairs = [one for pair in zip(down_grads, up_grads, strict=True) for one in pair]
        return (into, None, None, None, None, *pairs)


def mixture_of(names: Sequence[str | None], device: torch.device, dtype: torch.dtype) -> Mixture | None:
    """Return the mixture that sends row i through the adapter `names[i]`; None is the base model."""
    ordered = tuple(sorted({name for name in names if name is not None}))
    if not ordered:
        return None
    if len(ordered) == 1 and None not in names:
        return Mixture(ordered, None)
    own = [[name == one for one in ordered] for name in names]
    return Mixture(ordered, torch.tensor(own, dtype=dtype, device=device)[:, None, :, None])

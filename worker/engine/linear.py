"""Linear layers with a low-rank adapter: y = x Wᵀ + b + s (x Aᵀ) Bᵀ, the frozen W, and A and B that learn.

One class stands for one layer, or for several that read the same input; the `Mode` all layers of a policy
share says which of the ways is in force. Layers know nothing of models: `policy.py` puts them in, `llama.py`
joins those that belong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# An adapter that so many batches of several have not asked for makes room in the stacks.
_LATELY = 256
# From so many results on a thin product is faster as the kernel reads it.
_WIDE = 1024

Ranks = tuple[tuple[int, ...], ...]
"""Of each of several joined layers, the ranks of the adapters laid end to end."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which of several adapters each row of a batch goes through.

    Shapes: `owners` [rows, names], one where the row is the adapter's; None when one has every row.
    """

    names: tuple[str, ...]
    owners: Tensor | None = None
    _masks: dict[Ranks, Tensor] = field(default_factory=dict)

    def mask(self, ranks: Ranks) -> Tensor | None:
        """Return what is one in a row's own columns, zero in others': [rows, Σ ranks]; None when all are."""
        if self.owners is None:
            return None
        if ranks not in self._masks:  # the same for most layers of a model
            columns = [name for layer in ranks for name, rank in enumerate(layer) for _ in range(rank)]
            self._masks[ranks] = self.owners[:, torch.tensor(columns, device=self.owners.device).long()]
        return self._masks[ranks]


class Mixing:
    """Chooses the adapters that stand in the layers' stacks, so that few batches need new ones.

    A stack serves every batch whose adapters it holds. It is laid out anew when one is missing, or when it
    holds more than twice those that batches asked for of late.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._stack: tuple[str, ...] = ()
        self._turn = 0
        self._used: dict[str, int] = {}  # the turn of each name's last use beside others

    def of(self, names: Sequence[str | None]) -> Mixture | None:
        """Return the mixture that sends row i through the adapter `names[i]`; None is the base model."""
        wanted = {name for name in names if name is not None}
        if not wanted:
            return None
        among = tuple(wanted) if len(wanted) == 1 else self._among(wanted)
        if len(wanted) == 1 and None not in names:
            return Mixture(among)
        own = [[name == one for one in among] for name in names]
        return Mixture(among, torch.tensor(own, dtype=self._dtype, device=self._device))

    def forget(self, name: str) -> None:
        """Leave an adapter out that goes."""
        self._used.pop(name, None)
        if name in self._stack:
            self._stack = ()

    def _among(self, wanted: set[str]) -> tuple[str, ...]:
        self._turn += 1
        self._used |= dict.fromkeys(sorted(wanted), self._turn)
        self._used = {name: turn for name, turn in self._used.items() if self._turn - turn < _LATELY}
        if not wanted.issubset(self._stack) or len(self._stack) > 2 * len(self._used):
            self._stack = tuple(self._used)
        return self._stack


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


class Product:
    """x Wᵀ + b with a weight that stays for many calls.

    On a CPU the weight is laid out once as the kernel reads it: with 32 rows that is 1.4 to 2 times as fast
    (`docs/decisions/packed-weights.md`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self.nbytes = weight.nbytes
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


@dataclass(frozen=True, slots=True)
class Stack:
    """One adapter of joined layers, for few products.

    Shapes: `down` A [in, Σ ranks], layer by layer; of each layer, `ups` s B [its rank, out].
    """

    down: Tensor
    ups: tuple[Tensor, ...]
    ranks: Ranks

    @classmethod
    def of(cls, parts: Sequence[Adapter], weight: Tensor) -> Self:
        """Lay one adapter's parts out for layers whose weight is this."""
        down = torch.cat([part.down for part in parts]).t().to(weight).contiguous()
        ups = tuple((part.up * part.scaling).t().to(weight).contiguous() for part in parts)
        return cls(down, ups, tuple((len(part.down),) for part in parts))

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return sum(tensor.nbytes for tensor in (self.down, *self.ups))


@dataclass(frozen=True, slots=True)
class Several:
    """Several adapters of joined layers end to end, as the kernel reads them where that is faster."""

    down: Product
    ups: tuple[Tensor | Product, ...]
    ranks: Ranks

    @classmethod
    def of(cls, stacks: Sequence[Stack]) -> Self:
        """Lay adapters out side by side."""
        downs = [torch.split(one.down, [sum(own) for own in one.ranks], dim=1) for one in stacks]
        ups = [torch.cat(layer) for layer in zip(*(one.ups for one in stacks), strict=True)]
        return cls(
            Product(torch.cat([down for layer in zip(*downs, strict=True) for down in layer], dim=1).t()),
            tuple(Product(up.t()) if up.shape[1] >= _WIDE else up for up in ups),
            tuple(sum(layer, ()) for layer in zip(*(one.ranks for one in stacks), strict=True)),
        )

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return sum(tensor.nbytes for tensor in (self.down, *self.ups))


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
        self._adapters: dict[str, Stack] = {}  # to serve, by name
        self._several: tuple[tuple[str, ...], Several] | None = None
        if len(layers) == 1:
            self._whole, self.bias = None, layers[0].bias
            return
        self._whole = torch.cat([layer.weight.data for layer in layers])
        for layer, part in zip(layers, torch.split(self._whole, self.widths), strict=True):
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

    @property
    def weight(self) -> Tensor:
        """The base weights of all layers: [out 1 + out 2 + ..., in]."""
        return self.layers[0].weight.data if self._whole is None else self._whole

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

    def add(self, name: str, stack: Stack) -> None:
        """Hold an adapter to serve, as `Stack.of` lays it out."""
        self._adapters[name] = stack

    def drop(self, name: str) -> None:
        """Let go of an adapter to serve, and of the stack it stands in."""
        self._adapters.pop(name, None)
        if self._several is not None and name in self._several[0]:
            self._several = None

    def adapter_bytes(self, name: str) -> int:
        """Return the memory of an adapter to serve."""
        return self._adapters[name].nbytes if name in self._adapters else 0

    @property
    def stack_bytes(self) -> int:
        """The memory of what was stacked of several adapters, beside their own."""
        return self._several[1].nbytes if self._several is not None else 0

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
        stack = self._stack(mixture.names)
        inner = stack.down(x) if isinstance(stack.down, Product) else x @ stack.down
        mask = mixture.mask(stack.ranks)
        if mask is not None:
            inner.mul_(mask)
        thin = torch.split(inner, [sum(own) for own in stack.ranks], dim=1)
        for own, part, up in zip(torch.split(y, self.widths, dim=1), thin, stack.ups, strict=True):
            if isinstance(up, Product):
                own.add_(up(part))
            else:
                own.addmm_(part, up)

    def _stack(self, names: tuple[str, ...]) -> Stack | Several:
        if len(names) == 1:
            return self._adapters[names[0]]
        if self._several is None or self._several[0] != names:
            self._several = None  # before memory is taken for the next
            self._several = names, Several.of([self._adapters[name] for name in names])
        return self._several[1]


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

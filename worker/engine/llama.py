"""The Llama family's decoder written out: fewer, larger products and nothing in between.

Stands beside the general path, which runs any model through transformers' own code; `policy.py` takes this
one where it knows the model and the numbers agree. One forward serves prefill, decoding and training; what
differs is the layout (who sees whom), the mode of the products, and whether their results are known from a
tape.
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from worker.engine.attention import Layout, Rule
from worker.engine.linear import Joined, Mode
from worker.engine.tape import Products, Tape

_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

# Of a layer's four products those added to its input.
_RESIDUAL = (1, 3)

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary embedding, [N, 1, D] each; the sines of the first half are negated."""


class Llama:
    """A decoder's forward over token rows: [N] ids to [N, H] last hidden states."""

    def __init__(self, decoder: Any, mode: Mode) -> None:
        self._decoder = decoder
        self._layers = [_Layer(index, layer, mode) for index, layer in enumerate(decoder.layers)]
        self.products: tuple[Joined, ...] = tuple(
            product for layer in self._layers for product in layer.products()
        )
        self.checkpointing = False
        self.line_bytes = sum(joined.weight.itemsize * sum(joined.widths) for joined in self.products)
        """The size of all products for a token."""

    @classmethod
    def of(cls, causal: Any, mode: Mode) -> Self | None:
        """Return this forward for a model of the family, None for any other."""
        config = causal.config
        if type(causal).__name__ not in _FAMILY or config.hidden_act != "silu":
            return None
        return cls(causal.get_decoder(), mode)

    def hidden(
        self, token_ids: Tensor, positions: Tensor, layout: Layout, tape: Tape | None = None
    ) -> Tensor:
        """Return the last hidden states, recording every product where there is a tape."""
        x, angles = self._start(token_ids, positions)
        for layer in self._layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, angles, layout, use_reentrant=False)
            else:
                x = layer(x, angles, layout, None, tape)
        if tape is not None:
            tape.end_forward(len(token_ids))
        return self._norm(x)

    def replay(
        self, token_ids: Tensor, positions: Tensor, layout: Layout, tape: Tape, lines: Tensor
    ) -> Tensor:
        """Return the last hidden states, with gradient, from the products on the tape at these lines."""
        x, angles = self._start(token_ids, positions)
        x.requires_grad_()
        for layer in self._layers:
            x = _Replayed.apply(x, layer, angles, layout, tape, lines)  # type: ignore[no-untyped-call]
        return self._norm(x)

    def _start(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Angles]:
        x = self._decoder.embed_tokens(token_ids).detach()
        cosines, sines = self._decoder.rotary_emb(x[None], positions[None])
        first, second = sines[0, :, None].chunk(2, dim=-1)
        return x, (cosines[0, :, None], torch.cat([-first, second], dim=-1))

    def _norm(self, x: Tensor) -> Tensor:
        return _normed(x, self._decoder.norm)


class _Layer:
    """One layer: attention and feed-forward, each in front of it a norm and around it a residual."""

    def __init__(self, index: int, layer: Any, mode: Mode) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = index
        self.head_width: int = attention.head_dim
        self.qkv = Joined([attention.q_proj, attention.k_proj, attention.v_proj], mode)
        self.out = Joined([attention.o_proj], mode)
        self.gate_up = Joined([mlp.gate_proj, mlp.up_proj], mode)
        self.down = Joined([mlp.down_proj], mode)
        # Mistral keeps its window in the config alone.
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        self.rule = Rule(attention.scaling, window, None)
        self.first_norm, self.second_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        self.queries = self.qkv.widths[0] // self.head_width
        self.keys = self.qkv.widths[1] // self.head_width

    def products(self) -> tuple[Joined, ...]:
        return self.qkv, self.out, self.gate_up, self.down

    def __call__(
        self,
        x: Tensor,
        angles: Angles,
        layout: Layout,
        known: Products | None = None,
        tape: Tape | None = None,
    ) -> Tensor:
        known_qkv, known_out, known_gate_up, known_down = known if known is not None else (None,) * 4
        qkv = self.qkv(_normed(x, self.first_norm), known_qkv)
        heads = qkv.view(len(x), -1, self.head_width)
        turning, value = torch.split(heads, [self.queries + self.keys, self.keys], dim=1)
        query, key = torch.split(
            _turned(self._head_normed(turning), angles), [self.queries, self.keys], dim=1
        )
        seen = layout.attend(
            self.index, query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), self.rule
        )
        out = self.out(seen.reshape(len(x), -1), known_out)
        x = x + out
        gate_up = self.gate_up(_normed(x, self.second_norm), known_gate_up)
        gate, up = gate_up.chunk(2, dim=1)
        down = self.down(F.silu(gate) * up, known_down)
        if tape is not None:
            tape.record(self.index, (qkv, out, gate_up, down))
        return x + down

    def _head_normed(self, heads: Tensor) -> Tensor:
        query_norm, key_norm = self.head_norms
        if query_norm is None or key_norm is None:
            return heads
        query, key = torch.split(heads, [self.queries, self.keys], dim=1)
        return torch.cat([_normed(query, query_norm), _normed(key, key_norm)], dim=1)


class _Replayed(torch.autograd.Function):
    """A layer whose products are known: nothing to compute forward, one pass through it backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: _Layer, angles: Angles, layout: Layout, tape: Tape, lines: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rest = (layer, angles, layout, tape, lines)
        out, down = tape.read(layer.index, lines, _RESIDUAL)
        return (x + out).add_(down)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer, angles, layout, tape, lines = ctx.rest
        (saved,) = ctx.saved_tensors
        x = saved.detach().requires_grad_()
        with torch.enable_grad():
            y = layer(x, angles, layout, tape.read(layer.index, lines))
        torch.autograd.backward(y, grad)
        return x.grad, None, None, None, None, None


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _turned(heads: Tensor, angles: Angles) -> Tensor:
    """Rotate each head by its position. Shapes: [N, heads, D] -> [N, heads, D]."""
    cosines, sines = angles
    return torch.cat([*reversed(heads.chunk(2, dim=-1))], dim=-1).mul_(sines).addcmul_(heads, cosines)

"""Log-probs of given tokens from hidden states, in chunks: no [tokens, vocabulary] is ever kept.

A token's log-prob is one number, so its gradient is one row of hidden size, known as soon as its logits are;
it is computed with them and the logits are dropped. Called by `update.py` and the checkpoint's probe.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.engine.grammar import Bits, disallowed

_CHUNK = 128

Head = Callable[[Tensor], Tensor]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        temperature: float,
        masks: Sequence[Bits | None],
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, slopes = [], [], []
        for start in range(0, len(hidden), _CHUNK):
            part = slice(start, start + _CHUNK)
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_(ctx.needs_input_grad[0])
                scores = _distribution(head(states), temperature, masks[part])
                chosen = scores.gather(1, targets[part, None])[:, 0]
                if ctx.needs_input_grad[0]:
                    # Rows don't touch each other, so the slope of their sum holds each row's own.
                    slopes.append(torch.autograd.grad(chosen.sum(), states)[0])
            scores = scores.detach()
            # Masked tokens have probability 0 and add nothing; -inf · 0 would be NaN.
            entropies.append(-(scores.exp() * scores.clamp(min=-1e9)).sum(-1))
            logprobs.append(chosen.detach())
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (grad[:, None] * slopes).to(slopes.dtype), None, None, None, None


class _RecordedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, logprobs: Tensor, slopes: Callable[[], Tensor], temperature: float
    ) -> Tensor:
        ctx.slopes, ctx.temperature, ctx.dtype = slopes, temperature, hidden.dtype
        return logprobs.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        slope = ctx.slopes().mul_(grad[:, None] / ctx.temperature)
        return slope.to(ctx.dtype), None, None, None


def recorded_logprobs(
    hidden: Tensor, logprobs: Tensor, slopes: Callable[[], Tensor], *, temperature: float
) -> Tensor:
    """Return log-probs known from sampling, with a gradient: `slopes` are those of temperature 1.

    Shapes: hidden [T, H], logprobs [T], slopes -> [T, H].
    """
    result: Tensor = _RecordedLogprobs.apply(hidden, logprobs, slopes, temperature)  # type: ignore[no-untyped-call]
    return result


def _distribution(logits: Tensor, temperature: float, masks: Sequence[Bits | None]) -> Tensor:
    logits = logits / temperature if temperature != 1 else logits
    constrained = [bits for bits in masks if bits is not None]
    if constrained:
        logits = logits.masked_fill(disallowed(constrained, logits.shape[1]).to(logits.device), float("-inf"))
    return logits.log_softmax(-1)


def token_logprobs(
    head: Head, hidden: Tensor, targets: Tensor, *, temperature: float, masks: Sequence[Bits | None]
) -> tuple[Tensor, Tensor]:
    """Return the targets' log-probs (with gradient) and the entropies (without) of the sampled distribution.

    The masks are all None or all bits: with a grammar, forced tokens never come here.
    Shapes: hidden [T, H], targets [T] -> [T], [T].
    """
    if not len(targets):
        # Keeps the graph whole: backward through nothing gives zeros.
        return hidden.sum(-1), hidden.new_zeros(0)
    logprobs, entropy = _TokenLogprobs.apply(hidden, targets, head, temperature, masks)  # type: ignore[no-untyped-call]
    return logprobs, entropy

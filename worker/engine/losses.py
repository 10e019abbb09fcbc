"""The policy loss on flat token tensors, and nothing else: no model, no batch, no optimizer.

Every tensor holds the answer tokens of a micro-batch one after another; there is no padding and so no mask.
Called by `update.py`, held by hand-worked numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The summed loss of these tokens (with gradient) and the sums that become a step's metrics."""

    loss: Tensor  # []
    kl: Tensor  # []
    sampler_trainer_kl: Tensor  # []
    clipped: Tensor  # []


def token_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    base_logprobs: Tensor | None = None,
    *,
    clip_low: float,
    clip_high: float,
    kl_beta: float = 0.0,
) -> TokenLoss:
    """Return - sum min(r·A, clip(r, 1 - low, 1 + high)·A) + beta · sum k3, with r = exp(logprob - old).

    A sum, not a mean: the caller divides by the tokens of the whole step, so the result does not depend on
    how the step was cut into micro-batches.

    Shapes: all [T]; `base_logprobs` is needed only where `kl_beta` > 0.
    Source: arXiv:2503.14476 (DAPO: token mean, asymmetric clip); k3: joschu.net/blog/kl-approx.html.
    """
    gap = logprobs - old_logprobs
    ratio = gap.exp()
    plain = ratio * advantages
    held = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = -torch.minimum(plain, held).sum()
    with torch.no_grad():
        clipped = (held < plain).sum()
        gap_kl = k3(logprobs.detach(), old_logprobs).sum()
    kl = torch.zeros((), device=logprobs.device)
    if kl_beta > 0 and base_logprobs is not None:
        kl = k3(base_logprobs, logprobs).sum()
        loss = loss + kl_beta * kl
    return TokenLoss(loss, kl.detach(), gap_kl, clipped)


def k3(other_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """Return k3 = exp(d) - d - 1 per token: KL(p ‖ other) estimated from tokens drawn from p."""
    difference = other_logprobs - logprobs
    return difference.expm1() - difference

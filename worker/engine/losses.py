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
    importance_cap: float | None = None,
) -> TokenLoss:
    """Return - sum w · min(r·A, clip(r)·A) + beta · sum k3, the clip as `clipped` has it.

    Without `importance_cap` r = exp(logprob - old) and w = 1: sampler and trainer are one program, whose
    log-probs at the update are the old ones. With it the sampler was another program: r is to the trainer's
    own log-probs, so 1 at the first update after sampling, and w = `importance_weights` makes up for the
    sampler's.
    A sum, not a mean: the caller divides by the tokens of the whole step, so the result does not depend on
    how the step was cut into micro-batches.

    Shapes: all [T]; `base_logprobs` is needed only where `kl_beta` > 0.
    Source: arXiv:2503.14476 (DAPO: token mean, asymmetric clip).
    """
    now = logprobs.detach()
    ratio = (logprobs - (old_logprobs if importance_cap is None else now)).exp()
    plain = ratio * advantages
    held = clipped(ratio, clip_low, clip_high) * advantages
    terms = torch.minimum(plain, held)
    if importance_cap is not None:
        terms = terms * importance_weights(now, old_logprobs, importance_cap)
    loss = -terms.sum()
    with torch.no_grad():
        count = (held < plain).sum()
        gap_kl = k3(now, old_logprobs).sum()
    kl = torch.zeros((), device=logprobs.device)
    if kl_beta > 0 and base_logprobs is not None:
        kl = k3(base_logprobs, logprobs).sum()
        loss = loss + kl_beta * kl
    return TokenLoss(loss, kl.detach(), gap_kl, count)


def clipped(ratio: Tensor, low: float, high: float) -> Tensor:
    """Return clip(r, 1 - low, 1 + high).

    With high > low a rare token may gain more than a common one may lose, which keeps the policy curious.

    Shapes: [T] -> [T].
    Source: arXiv:1707.06347 (PPO), equation 7; arXiv:2503.14476 (DAPO: clip higher), section 3.1.
    """
    return ratio.clamp(1 - low, 1 + high)


def importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """Return w = min(exp(trainer - sampler), cap), without gradient.

    The same weights give two programs (other kernels, another number type) two distributions. Weighing each
    token by their ratio makes the expectation the trainer's again; the cap bounds the variance, at the price
    of some bias where the trainer finds a token much likelier than the sampler did.

    Shapes: [T], [T] -> [T].
    Source: arXiv:1802.01561 (IMPALA, truncated importance weights), section 4.1; for language models sampled
    by another engine: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training" (TIS).
    """
    return (trainer_logprobs - sampler_logprobs).exp().clamp(max=cap).detach()


def k3(other_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """Return k3 = exp(d) - d - 1, d = other - own: KL(p ‖ other) estimated from tokens drawn from p.

    Never negative and without bias, where the plain estimate -d is negative for half of the tokens.

    Shapes: [T], [T] -> [T].
    Source: joschu.net/blog/kl-approx.html.
    """
    difference = other_logprobs - logprobs
    return difference.expm1() - difference

"""One token per row from its logits: masked, tempered, drawn by inverse CDF from one uniform number.

No random state and no `multinomial`, which costs as much as half a decode step over a large vocabulary.
Called by the decoder; the log-probs are those of the distribution drawn from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.errors import NonFinite

_BLOCK = 256
# A nucleus nearly always lies within so many likeliest tokens; sorting a vocabulary takes milliseconds.
_LIKELIEST = 1024


@dataclass(frozen=True, slots=True)
class Spread:
    """The distributions a draw was made from: shares are weights / totals.

    Shapes: weights [R, V], totals [R], entropies [R].
    """

    weights: Tensor
    totals: Tensor
    entropies: Tensor


def draw(
    logits: Tensor, uniforms: Tensor, temperature: float | Tensor, top_p: Mapping[int, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row and return (tokens [R], log-probs [R]); temperature 0 takes the likeliest.

    At temperature 0 the log-prob is that of temperature 1. `top_p` stands beside the rows that have one. The
    logits are used up.

    Shapes: logits [R, V], -inf where masked; uniforms [R], float64, strictly between 0 and 1; temperature [R]
    where rows differ.
    Raises: NonFinite when a row has no finite distribution.
    """
    tokens, logprobs, _ = draw_telling(logits, uniforms, temperature, top_p, spread=False)
    return tokens, logprobs


def draw_telling(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor,
    top_p: Mapping[int, float] | None = None,
    *,
    spread: bool,
) -> tuple[Tensor, Tensor, Spread | None]:
    """Draw as `draw` does, and with `spread` return the distributions too."""
    greedy = temperature == 0
    if isinstance(temperature, Tensor):
        logits.div_(temperature.masked_fill(temperature == 0, 1.0)[:, None])
    elif temperature > 0 and temperature != 1:
        logits.div_(temperature)
    for row, share in (top_p or {}).items():
        _cut(logits[row], share)
    highest, likeliest = logits.max(dim=-1, keepdim=True)  # [R, 1]
    gaps = logits.sub_(highest)
    weights = gaps.exp() if spread else gaps.exp_()
    width = weights.shape[1]
    # Where nothing is missing `pad` would copy all the same.
    padded = F.pad(weights, (0, -width % _BLOCK)) if width % _BLOCK else weights
    blocks = padded.view(len(weights), -1, _BLOCK)
    # Few enough for float32, whose sums go by halves; those of all blocks are not.
    edges = blocks.sum(-1).double().cumsum(-1)  # [R, V / block]
    total = edges[:, -1]
    if not torch.isfinite(total).all():
        raise NonFinite("the model's logits are not finite")
    if greedy is True:
        tokens = likeliest[:, 0]
    else:
        tokens = _invert(blocks, edges, uniforms * total)
        if isinstance(greedy, Tensor):
            tokens = torch.where(greedy, likeliest[:, 0], tokens)
    chosen = weights.gather(1, tokens[:, None])[:, 0]
    told = None
    if spread:
        # H = log Z - sum w (l - max) / Z; a masked token has no weight, and -inf · 0 would be NaN.
        moments = torch.linalg.vecdot(gaps.clamp_(min=-1e9), weights)
        told = Spread(weights, total.float(), (total.log() - moments / total).float())
    return tokens, (chosen.double().log() - total.log()).float(), told


def _invert(blocks: Tensor, edges: Tensor, targets: Tensor) -> Tensor:
    """Return the first token whose running sum passes its target: first the block, then the place in it."""
    block = torch.searchsorted(edges, targets[:, None], right=True).clamp_(max=edges.shape[1] - 1)  # [R, 1]
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]]  # [R, block]
    running = inside.double().cumsum(-1)
    place = torch.searchsorted(running, targets[:, None] - before, right=True).clamp_(max=_BLOCK - 1)
    # A block's sum and its running sum round differently; at the very edge the place can lie past the block's
    # end, or on a token that has no weight, perhaps a masked one. Then the block's heaviest token stands in.
    stray = (targets[:, None] - before >= running[:, -1:]) | (inside.gather(1, place) == 0)
    place = torch.where(stray, inside.argmax(-1, keepdim=True), place)
    return (block * _BLOCK + place)[:, 0]


def _cut(logits: Tensor, top_p: float) -> None:
    """Mask in place all but the likeliest tokens that together reach `top_p`. Shapes: logits [V]."""
    shares = logits.softmax(-1)
    for most in (min(_LIKELIEST, len(shares)), len(shares)):
        likeliest = shares.topk(most).values
        reached = likeliest.cumsum(-1)
        if reached[-1] >= top_p:
            break
    # The first token always stays, even where its share alone exceeds top_p.
    kept = int((reached - likeliest < top_p).sum().clamp(min=1))
    logits.masked_fill_(shares < likeliest[kept - 1], float("-inf"))

"""One token per row from its logits: masked, tempered, drawn by inverse CDF from one uniform number.

No random state and no `multinomial`, which costs as much as half a decode step over a large vocabulary.
Called by the sampler; the log-probs are those of the distribution drawn from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.errors import NonFinite

_BLOCK = 256


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row and return (tokens [R], log-probs [R]); temperature 0 takes the likeliest.

    At temperature 0 the log-prob is that of temperature 1. The logits are used up.

    Shapes: logits [R, V], -inf where masked; uniforms [R], float64, strictly between 0 and 1.
    Raises: NonFinite when a row has no finite distribution.
    """
    if temperature > 0 and temperature != 1:
        logits.div_(temperature)
    highest, likeliest = logits.max(dim=-1, keepdim=True)  # [R, 1]
    weights = logits.sub_(highest).exp_()
    width = weights.shape[1]
    blocks = F.pad(weights, (0, -width % _BLOCK)).view(len(weights), -1, _BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64)  # [R, V / block]
    edges = sums.cumsum(-1)
    total = edges[:, -1]
    if not torch.isfinite(total).all():
        raise NonFinite("the model's logits are not finite")
    if temperature == 0:
        tokens = likeliest[:, 0]
    else:
        tokens = _invert(blocks, edges, uniforms * total)
    chosen = weights.gather(1, tokens[:, None])[:, 0]
    return tokens, (chosen.double().log() - total.log()).float()


def _invert(blocks: Tensor, edges: Tensor, targets: Tensor) -> Tensor:
    """Return the first token whose running sum passes its target: first the block, then the place in it."""
    block = torch.searchsorted(edges, targets[:, None], right=True).clamp_(max=edges.shape[1] - 1)  # [R, 1]
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]]  # [R, block]
    running = inside.double().cumsum(-1)
    place = torch.searchsorted(running, targets[:, None] - before, right=True).clamp_(max=_BLOCK - 1)
    # A block's sum and its running sum round differently; at the very edge the place can fall on a token that
    # has no weight, perhaps a masked one. Then the block's heaviest token stands in.
    stray = inside.gather(1, place) == 0
    place = torch.where(stray, inside.argmax(-1, keepdim=True), place)
    return (block * _BLOCK + place)[:, 0]

"""The general forward: any causal model by transformers' own code, its attention replaced by our layouts.

Also the output head's logits, and the probe that on loading holds our forwards against the model's own
numbers. Called by `policy.py`, which keeps the faster forward and the plain one beside it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.engine import attention
from worker.engine.attention import Layout, PackedLayout, attending
from worker.engine.errors import UnsupportedModel
from worker.engine.packing import Packed, Tree, pack
from worker.engine.plain import Plain
from worker.engine.seeds import uniform

# The prefix-shared forward must agree with the model's own to rounding of its number type.
_AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


def hidden(causal: Any, token_ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Return the last hidden states of a row of tokens under a layout. Shapes: [N], [N] -> [N, H]."""
    with attending(layout):
        out = causal.get_decoder()(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
    states: Tensor = out.last_hidden_state[0]
    return states


def logits(causal: Any, states: Tensor) -> Tensor:
    """Return the vocabulary's logits of hidden states. Shapes: [T, H] -> [T, V], float32."""
    return scaled(causal, causal.get_output_embeddings()(states))


def scaled(causal: Any, logits: Tensor) -> Tensor:
    """Return the head's products as the model's config scales and caps them."""
    config = causal.config.get_text_config()
    logits = logits.float()
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    return attention.capped(logits, getattr(config, "final_logit_softcapping", None))


def plain_if_needed(causal: Any, probe: "Probe") -> Plain | None:
    """Let the model attend by our layouts; return the plain path where its numbers are not its own then."""
    own = causal.config._attn_implementation
    try:
        if not causal._can_set_attn_implementation():
            raise probe.refusal("it does not let its attention be replaced")
        causal.set_attn_implementation(attention.NAME)
        probe.check(lambda packed, layout: hidden(causal, packed.token_ids, packed.positions, layout))
    except Exception as problem:  # boundary: there are as many ways to differ as there are models
        if causal.config._attn_implementation != own:
            causal.set_attn_implementation(own)
        return Plain.of(causal, lambda states: logits(causal, states), str(problem))
    return None


class Probe:
    """A made-up text with the model's own logits, against which a forward of ours is held.

    It is long enough to meet a sliding window, and laid out as one of two branches: a forward that reads the
    row as one text would be found out.
    """

    @torch.no_grad()
    def __init__(self, causal: Any) -> None:
        self._causal = causal
        config = causal.config.get_text_config()
        self._layers: int = config.num_hidden_layers
        window = getattr(config, "sliding_window", None) or 0
        length = min(max(24, window + 8), 2048)
        device = next(causal.parameters()).device
        text, decoy = (
            tuple(int(uniform(0, name, place) * config.vocab_size) for place in range(length))
            for name in ("text", "decoy")
        )
        tokens = torch.tensor([text], device=device)
        self._own = causal(input_ids=tokens, use_cache=False).logits[0].float()
        self._packed = pack(text[:8], [Tree(text[8:16], (decoy[:16], text[16:])), Tree(decoy[:4])], device)
        second = self._packed.spans[0].branch_starts[1]
        self._places = [*range(16), *range(second, second + length - 16)]

    def refusal(self, reason: str) -> UnsupportedModel:
        """Return the error that refuses this model for a reason."""
        return UnsupportedModel(f"{type(self._causal).__name__} is not supported: {reason}")

    @torch.no_grad()
    def check(self, read: Callable[[Packed, PackedLayout], Tensor]) -> None:
        """Raises: UnsupportedModel when `read`, packed row to hidden states, gives other logits."""
        layout = PackedLayout(self._packed, remember=True)
        states = read(self._packed, layout)
        if len(layout.keys) != self._layers:
            raise self.refusal("not all its layers are attention layers")
        gap = (self._own - logits(self._causal, states[self._places])).abs().max().item()
        if not gap <= _AGREE[states.dtype] * max(1.0, self._own.abs().max().item()):
            raise self.refusal(f"its numbers differ by {gap:.2g} when prompts are shared")

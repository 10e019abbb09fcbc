"""Layers that keep their input alone for the backward pass, and compute the rest again there.

Memory for time: about a third more work, for a fraction of the activations. For any model whose layers
transformers itself could so treat; `llama.py` does its own. Called by `policy.py` when a run would not fit
otherwise.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.engine.attention import attending, layout_in_force


def recompute_layers(model: nn.Module) -> None:
    """Make every layer of a model forget what it computed until the backward pass asks for it."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = _forgetting(module.forward)


def _forgetting(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forgetting(*inputs: Any, **rest: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **rest)
        layout = layout_in_force()

        def once(*inputs: Any, **rest: Any) -> Any:
            # The second time is in the backward pass, perhaps in another thread, where no layout is in force.
            if layout is None:
                return forward(*inputs, **rest)
            with attending(layout):
                return forward(*inputs, **rest)

        return checkpoint(once, *inputs, use_reentrant=False, preserve_rng_state=False, **rest)

    return forgetting

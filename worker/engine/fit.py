"""Making a run fit: micro-batches cut to the memory that is free, layers computed again where it is little.

What a forward pass keeps for its backward pass is measured once, before step 1. The choice decides the last
bit of a sum, so it is part of every checkpoint and never made again. Called by `reinforcement.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from worker.engine.attention import PackedLayout
from worker.engine.config import TrainingConfig
from worker.engine.errors import OutOfMemory
from worker.engine.memory import ADAPTER_COPIES, available, logit_bytes, readable
from worker.engine.packing import Tree, pack
from worker.engine.policy import Policy
from worker.engine.types import Prompt

# Beside what is kept for the backward pass: a layer's own results on the way, and the allocator's gaps.
_SLACK = 1.3
_PROBE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Fit:
    """What was chosen so that a run fits.

    `recompute`: layers keep their input alone for the backward pass, and compute the rest again there.
    `tape`: what sampling computed is kept for training.
    """

    micro_batch_tokens: int
    recompute: bool = False
    tape: bool = True

    @classmethod
    def of(cls, policy: Policy, config: TrainingConfig, prompts: Sequence[Prompt]) -> Self:
        """Choose micro-batches, and whether to recompute, by what a forward pass is measured to keep.

        Raises: OutOfMemory when one answer at a time is too much even so.
        """
        longest = max(len(prompt.token_ids) for prompt in prompts) + config.max_completion_tokens
        kept = kept_bytes(policy, config, longest)
        room = available(policy.device) - _reserved(policy, config, prompts)
        layers = max(1, policy.layer_count)
        again = kept / layers + layers * policy.width * policy.dtype.itemsize
        whole, little = room / (_SLACK * kept), room / (_SLACK * again)
        # Beside a tape a layer at a time is computed; a tape that grows too long is dropped for the whole.
        taped = min(whole, (room - (config.tape_mib << 20)) / (_SLACK * again))
        for tokens, recompute, tape in ((taped, False, True), (whole, False, False), (little, True, False)):
            if tokens >= longest:
                return cls(min(config.micro_batch_tokens, int(tokens)), recompute, tape)
        raise OutOfMemory(
            f"Training one answer of {longest} tokens with its prompt takes about "
            f"{readable(_SLACK * again * longest)} beside the model, and {readable(max(0, room))} are free: "
            "use a smaller model, shorter prompts, or a lower max_completion_tokens."
        )


def kept_bytes(policy: Policy, config: TrainingConfig, longest: int) -> float:
    """Return the bytes that a forward pass keeps for its backward pass, for each packed token.

    The tree has the form of a real one: a prompt, and as many answers as a group has.
    """
    answers = config.samples_per_prompt
    prompt = max(1, longest - config.max_completion_tokens)
    whole = prompt + answers * config.max_completion_tokens
    share = min(1.0, _PROBE_TOKENS / whole)
    trunk, branch = max(1, int(prompt * share)), max(1, int(config.max_completion_tokens * share))
    packed = pack((), [Tree((0,) * trunk, ((0,) * branch,) * answers)], policy.device)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        states = policy.hidden(packed.token_ids, packed.positions, PackedLayout(packed))
    del states
    return max(1.0, sum(kept.values()) / len(packed.token_ids))


def _reserved(policy: Policy, config: TrainingConfig, prompts: Sequence[Prompt]) -> int:
    """Return the bytes that a run takes beside what a micro-batch keeps."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    rows = config.batch_size * (longest + config.samples_per_prompt * config.max_completion_tokens)
    cache = (config.sampling_cache_mib << 20) * min(rows, policy.wave_tokens) // policy.wave_tokens
    adapter = sum(parameter.nbytes for parameter in policy.adapter.values())
    # Sampling's cache and copy are gone when training begins, but allocators seldom give such pieces back.
    return policy.copied_bytes + cache + (ADAPTER_COPIES - 1) * adapter + logit_bytes(policy.vocabulary)

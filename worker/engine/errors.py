"""What can stop a run for good, or a single step. The runner turns these into the job's error.

Raised by the engine's modules; caught inside the engine only where a step may be skipped or retried.
"""

import torch

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


class EngineError(Exception):
    """A failure the engine can name; `code` is the job's error code."""

    code = "training_failed"


class NumericalInstability(EngineError):
    """Numbers stopped being finite again after a roll-back at half the rate."""

    code = "numerical_instability"


class OutOfMemory(EngineError):
    """One answer alone does not fit into memory."""

    code = "out_of_memory"


class ModelTooLarge(EngineError):
    """The model's files say that it can't be trained in the memory there is; it was not loaded."""

    code = "model_too_large"


class ModelUnreadable(EngineError):
    """A file of the model's folder is missing or broken."""

    code = "model_not_available"


class UnsupportedModel(EngineError):
    """The model is no causal chat model: it sees what follows, or has no chat template."""

    code = "unsupported_model"


class CheckpointRefused(EngineError):
    """A checkpoint is damaged, another run's, or gives other numbers than when it was saved."""

    code = "checkpoint_refused"


class NonFinite(EngineError):
    """A forward pass gave numbers that are not finite; the step is skipped."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a failed allocation; a CPU and CUDA's libraries say so only in the message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)

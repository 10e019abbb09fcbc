"""How much memory there is, and how much a model takes to be trained, known before it is loaded.

The model's files tell: shapes are read, weights are not. A job that can't run is refused with the numbers, in
its first second instead of after minutes of loading. Called by `policy.py`; what a loaded model does with the
memory that is left is `fit.py`'s.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from worker.engine.config import TrainingConfig
from worker.engine.errors import ModelTooLarge, ModelUnreadable
from worker.engine.weights import weight_files

# Weights, gradient, two moments of Adam, the last good weights, and those before an update.
ADAPTER_COPIES = 6
# Rows whose logits stand side by side, forward and backward, in float32.
_LOGIT_ROWS, _LOGIT_COPIES = 128, 4

# What the safetensors library itself takes; a broken file may claim any length.
_HEADER_BYTES = 100_000_000

# What a container may use, what it uses, and what the system takes back of that when it is wanted, files read
# before: control groups of the second kind, then of the first.
_SECOND, _FIRST = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
_GROUPS = (
    (_SECOND / "memory.max", _SECOND / "memory.current", _SECOND / "memory.stat", "inactive_file"),
    (
        _FIRST / "memory.limit_in_bytes",
        _FIRST / "memory.usage_in_bytes",
        _FIRST / "memory.stat",
        "total_inactive_file",
    ),
)

_MAPS = Path("/proc/self/maps")


def available(device: torch.device) -> int:
    """Return the bytes a run may still take on a device: of the GPU, or of the machine and its container."""
    if device.type == "cuda":
        # What torch holds and does not use is free to it, if not to others.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    free = [_machine()]
    for limit, used, stat, files in _GROUPS:
        try:
            figures = dict(line.split() for line in stat.read_text().splitlines())
            free.append(int(limit.read_text()) - int(used.read_text()) + int(figures[files]))
        except (OSError, ValueError, KeyError):  # no such group, or "max"
            continue
    return max(0, min(free))


def file_mappings() -> list[range]:
    """Return the addresses of this process that are a file's bytes; none where the system does not say."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for line in lines:
        # Addresses, rights, offset, device, inode, and what is mapped: a path, "[heap]", or nothing.
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, stop = (int(part, 16) for part in addresses.split("-"))
            found.append(range(start, stop))
    return found


def _machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def check_room(model_dir: Path, config: TrainingConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model that can't be trained in the memory there is, from its files alone.

    Raises: ModelTooLarge with what is needed, what is free, and what to do; ModelUnreadable.
    """
    parts = needed(model_dir, config, dtype)
    total, free = sum(parts.values()), available(device)
    if total > free:
        place = "on the GPU" if device.type == "cuda" else "on this machine"
        listed = ", ".join(f"{name} {readable(size)}" for name, size in parts.items())
        raise ModelTooLarge(
            f"{model_dir.name} does not fit into memory: computing with it takes about {readable(total)} "
            f"({listed}), and {readable(free)} are free {place}. Use a smaller model, a lower "
            "max_completion_tokens, or a machine with more memory."
        )


def needed(model_dir: Path, config: TrainingConfig, dtype: torch.dtype) -> dict[str, int]:
    """Return the least bytes of training a model, by what they are for: one answer at a time.

    Shapes alone are read; weights are counted in the type they will be loaded in.
    """
    shapes = _shapes(model_dir)
    try:
        described: Mapping[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelUnreadable(f"config.json of {model_dir.name} cannot be read: {problem}.") from problem
    described = described.get("text_config") or described
    vocabulary = int(described.get("vocab_size") or 0)
    matrices = [shape for shape in shapes if len(shape) == 2]
    linear = [shape for shape in matrices if vocabulary not in shape]
    head = max((math.prod(shape) for shape in matrices if vocabulary in shape), default=0)
    width = int(described.get("hidden_size") or described.get("n_embd") or described.get("d_model") or 0)
    layers = int(
        described.get("num_hidden_layers") or described.get("n_layer") or described.get("n_layers") or 0
    )
    # One layer at a time is computed again in the backward pass; the others keep their input.
    tokens = config.max_completion_tokens
    answer = tokens * width * (layers + 16) * dtype.itemsize + logit_bytes(vocabulary)
    copied = sum(map(math.prod, linear)) + head
    return {
        "weights": sum(map(math.prod, shapes)) * dtype.itemsize,
        # In 16 bits the adapter is not folded into the weights (`Policy.merged`).
        **({"their copy for sampling": copied * dtype.itemsize} if dtype == torch.float32 else {}),
        "adapter and optimizer": ADAPTER_COPIES * 4 * config.lora_rank * sum(map(sum, linear)),
        "one answer": answer,
    }


def _shapes(model_dir: Path) -> list[list[int]]:
    """Return every tensor's shape from the files' headers. Raises: ModelUnreadable.

    Not with the safetensors library: it maps the whole file, which fails where the file exceeds the memory.
    """
    shapes = []
    for path in weight_files(model_dir):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header: dict[str, Any] = json.loads(file.read(min(length, _HEADER_BYTES)))
            shapes += [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
            raise ModelUnreadable(
                f"{path.name} of {model_dir.name} is not a whole safetensors file: {problem}."
            ) from problem
    if not shapes:
        raise ModelUnreadable(
            f"{model_dir.name} has no weights: there is no .safetensors file in its folder."
        )
    return shapes


def logit_bytes(vocabulary: int) -> int:
    """Return what the logits of one chunk take, forward and backward."""
    return _LOGIT_ROWS * _LOGIT_COPIES * vocabulary * 4


def readable(size: float) -> str:
    """Return a size as a person says it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"

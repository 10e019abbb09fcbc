"""Adapters on their way in and out of a model: put on its layers, written and read in PEFT's layout.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. What the layers compute is
`linear.py`'s. Called by `policy.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine.config import TrainingConfig
from worker.engine.errors import CheckpointRefused
from worker.engine.linear import AdaptedLinear, Adapter, Mode

PREFIX = "base_model.model."
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PARTS = ("lora_A", "lora_B")

Layers = Mapping[str, AdaptedLinear]
"""A model's adapted layers by their path."""


def adapt(causal: Any, config: TrainingConfig, mode: Mode) -> dict[str, AdaptedLinear]:
    """Put an adapter on every linear layer but the output head; return them by their path."""
    head = causal.get_output_embeddings()
    found = [
        (path, module)
        for path, module in causal.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    assert config.lora_alpha is not None  # the config fills it in
    layers = {}
    for path, module in found:
        layers[path] = AdaptedLinear(module, config.lora_rank, config.lora_alpha, mode)
        causal.set_submodule(path, layers[path])
    return layers


def write(layers: Layers, directory: Path, base_name: str) -> None:
    """Write the adapter being trained. The base model is named, never its path."""
    directory.mkdir(parents=True, exist_ok=True)
    some = next(iter(layers.values()))
    peft.LoraConfig(
        r=len(some.lora_A),
        lora_alpha=round(some.scaling * len(some.lora_A)),
        lora_dropout=0.0,
        target_modules={path.rpartition(".")[2] for path in layers},
        fan_in_fan_out=some.transposed,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_name,
    ).save_pretrained(directory)
    # peft keeps the names in a set: as it writes them, no two processes would write the same file.
    described = json.loads((directory / _CONFIG).read_text())
    described["target_modules"].sort()
    (directory / _CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in _parameters(layers).items()
    }
    save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})


def load(layers: Layers, directory: Path, base_name: str) -> None:
    """Take the weights of the adapter being trained.

    Raises: CheckpointRefused when the folder's tensors are not those of these layers at this rank, are not
    finite, or belong to another base.
    """
    _check_base(directory, base_name)
    tensors = _tensors(directory)
    own = _parameters(layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
        raise CheckpointRefused(f"the adapter in {directory.name} has other layers or another rank")
    for name, tensor in own.items():
        tensor.data.copy_(tensors[name])


def read(layers: Layers, directory: Path, base_name: str) -> dict[str, Adapter]:
    """Return an adapter of any rank, layer by layer; a layer it leaves alone gets one that adds nothing.

    Raises: CheckpointRefused when its tensors don't belong to these layers, are not finite, or belong to
    another base, or when it is more than plain LoRA.
    """
    _check_base(directory, base_name)
    settings = peft.LoraConfig.from_pretrained(directory)
    if settings.r < 1 or settings.rank_pattern or settings.alpha_pattern or settings.use_dora:
        raise CheckpointRefused(
            f"the adapter in {directory.name} is not plain LoRA of one rank: its r must be 1 or more, and "
            "rank_pattern, alpha_pattern and use_dora must not be set"
        )
    scaling = settings.lora_alpha / (settings.r**0.5 if settings.use_rslora else settings.r)
    tensors = _tensors(directory)
    found: dict[str, Adapter] = {}
    for path, layer in layers.items():
        down, up = (tensors.pop(f"{PREFIX}{path}.{part}.weight", None) for part in _PARTS)
        if down is None or up is None:
            down, up = torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0)
        rank = down.shape[:1]
        if down.shape != (*rank, layer.in_features) or up.shape != (layer.out_features, *rank):
            raise CheckpointRefused(f"the adapter in {directory.name} has other shapes than {path}")
        found[path] = Adapter(down, up, scaling)
    if tensors:
        raise CheckpointRefused(f"the adapter in {directory.name} has layers this model lacks")
    return found


def _tensors(directory: Path) -> dict[str, Tensor]:
    """Return a folder's tensors.

    A number that is not finite would not stay with its adapter: rows of others are multiplied by it too, and
    wiped out with a zero, which makes no zero of it.
    """
    try:
        tensors = load_file(directory / _WEIGHTS)
    except SafetensorError as problem:
        raise CheckpointRefused(f"{_WEIGHTS} in {directory.name} can't be read: {problem}") from problem
    for name, tensor in tensors.items():
        if not bool(tensor.float().isfinite().all()):
            raise CheckpointRefused(f"the adapter in {directory.name} is not finite: {name}")
    return tensors


def _check_base(directory: Path, base_name: str) -> None:
    """Refuse an adapter of another base: its shapes may fit, and its numbers mean nothing here."""
    named = json.loads((directory / _CONFIG).read_text()).get("base_model_name_or_path") or ""
    if named and Path(named).name != base_name:
        raise CheckpointRefused(
            f"the adapter in {directory.name} was trained on {Path(named).name}, and this is {base_name}"
        )


def _parameters(layers: Layers) -> dict[str, nn.Parameter]:
    return {
        f"{PREFIX}{path}.{part}.weight": getattr(layer, part)
        for path, layer in layers.items()
        for part in _PARTS
    }

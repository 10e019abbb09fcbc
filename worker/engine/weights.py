"""Which files of a model's folder hold its weights. Without torch: the worker asks, who computes nothing."""

import json
from pathlib import Path

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(directory: Path) -> list[Path]:
    """Return the files that transformers loads, by name: a folder may hold the weights in other forms too."""
    if (directory / _ONE).is_file():
        return [directory / _ONE]
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        return [directory / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no index that can be read
        return sorted(directory.glob("*.safetensors"))

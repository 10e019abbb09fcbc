"""A model too large is refused from its files; a tight run recomputes, cuts its batches, and says so."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.conftest import Load, settings
from tests.worker.engine.test_reinforcement import same, start, weights
from tests.worker.engine.test_update import CONFIG, WHOLE, graded_groups, gradient_of
from worker.engine import fit, memory
from worker.engine.attention import PackedLayout
from worker.engine.errors import ModelTooLarge, OutOfMemory
from worker.engine.fit import Fit, kept_bytes
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt
from worker.engine.update import compute_gradient
from worker.engine.weights import weight_files
from worker.models import describe

CPU = torch.device("cpu")


def claim(folder: Path, tensors: dict[str, list[int]]) -> Path:
    """Write a model folder whose weights file has a header and, behind it, nothing but a hole."""
    folder.mkdir(exist_ok=True)
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + end)
    config = {"vocab_size": 1000, "hidden_size": 8192, "num_hidden_layers": 80}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_that_cannot_fit_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    # 80 matrices of 8192 x 65536: 43 billion weights, in a file that takes no room on this disk.
    large = claim(tmp_path / "large", {f"layers.{n}.weight": [8192, 65536] for n in range(80)})
    with pytest.raises(ModelTooLarge, match="large does not fit into memory") as refused:
        Policy.load(large, config=settings())
    message = str(refused.value)
    assert "weights 171.8 GB" in message
    assert "their copy for sampling 171.8 GB" in message
    assert "are free on this machine" in message
    assert "Use a smaller model" in message
    assert refused.value.code == "model_too_large"


def test_what_a_model_needs_by_hand(tmp_path: Path) -> None:
    small = claim(
        tmp_path / "small", {"embed": [1000, 8192], "layer.weight": [300, 200], "layer.bias": [300]}
    )
    found = memory.needed(small, settings(lora_rank=4, max_completion_tokens=10), torch.float32)
    assert found["weights"] == 4 * (1000 * 8192 + 300 * 200 + 300)
    assert found["their copy for sampling"] == 4 * (300 * 200 + 1000 * 8192)
    # Rank 4 on one layer: 4 x (300 + 200) numbers, six times.
    assert found["adapter and optimizer"] == 6 * 4 * 4 * 500


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, used, stat = (tmp_path / name for name in ("max", "current", "stat"))
    limit.write_text("1000000\n")
    used.write_text("700000\n")
    # Of what is used, files that were read before go when their place is wanted.
    stat.write_text("anon 350000\nfile 350000\ninactive_file 300000\nactive_file 50000\n")
    elsewhere = Path("/nowhere")
    groups = ((limit, used, stat, "inactive_file"), (elsewhere, elsewhere, elsewhere, "total_inactive_file"))
    monkeypatch.setattr(memory, "_GROUPS", groups)
    assert memory.available(CPU) == 600_000
    limit.write_text("max\n")
    assert memory.available(CPU) > 1_000_000


def test_addresses_of_files_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(400_000))
    own = torch.zeros(100_000)
    mapped = torch.from_file(str(path), size=100_000)
    for numbers, is_mapped in ((own, False), (mapped, True)):
        found = [mapping for mapping in memory.file_mappings() if numbers.data_ptr() in mapping]
        assert bool(found) == is_mapped


def test_weights_that_lie_there_in_two_forms_count_once(tmp_path: Path) -> None:
    folder = claim(tmp_path / "twice", {"layer.weight": [300, 200]})
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert [path.name for path in weight_files(folder)] == ["model-00001-of-00001.safetensors"]
    shutil.copy(folder / "model-00001-of-00001.safetensors", folder / "consolidated.safetensors")
    assert len(weight_files(folder)) == 2
    index = {"weight_map": {"layer.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = memory.needed(folder, settings(), torch.float32)
    assert found["weights"] == 4 * 300 * 200
    assert describe("twice", folder).parameters == 300 * 200


def test_in_16_bits_nothing_is_laid_out_for_sampling(tmp_path: Path) -> None:
    folder = claim(tmp_path / "small", {"layer.weight": [300, 200]})
    assert "their copy for sampling" not in memory.needed(folder, settings(), torch.bfloat16)


def prompts(count: int = 3, length: int = 20) -> list[Prompt]:
    return [Prompt(index, tuple(range(10, 10 + length))) for index in range(count)]


def room(policy: Policy, monkeypatch: pytest.MonkeyPatch, tokens: float, *, again: bool = False) -> None:
    """Pretend that so many tokens fit beside everything else, kept whole or computed again."""
    kept = kept_bytes(policy, settings(), 25)
    if again:
        kept = kept / policy.layer_count + policy.layer_count * policy.width * 4
    free = fit._reserved(policy, settings(), prompts()) + fit._SLACK * kept * tokens
    monkeypatch.setattr(fit, "available", lambda _device: int(free))


@pytest.mark.parametrize("fast", [True, False])
def test_the_choice_follows_the_memory_that_is_free(
    load: Load, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    policy = load(fast=fast)
    room(policy, monkeypatch, 1_000_000)
    assert Fit.of(policy, settings(), prompts()) == Fit(2048)
    room(policy, monkeypatch, 100.5)
    assert Fit.of(policy, replace(settings(), tape_mib=0), prompts()) == Fit(100)
    assert Fit.of(policy, settings(), prompts()) == Fit(100, tape=False)
    # 20 tokens of prompt and 5 of answer no longer fit whole.
    room(policy, monkeypatch, 24.5)
    chosen = Fit.of(policy, settings(), prompts())
    assert chosen.recompute
    assert chosen.micro_batch_tokens >= 25
    room(policy, monkeypatch, 10, again=True)
    with pytest.raises(OutOfMemory, match=r"one answer of 25 tokens .* are free: use a smaller model"):
        Fit.of(policy, settings(), prompts())


def test_what_is_kept_grows_with_the_model_and_leaves_its_weights_out(load: Load) -> None:
    policy = load()
    kept = kept_bytes(policy, settings(), 25)
    # Each of two layers keeps at least its input and what its products read, and the weights are larger.
    assert kept > 2 * 4 * policy.width
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    packed = 20 + 4 * 5
    assert kept * packed < 10 * weights


@pytest.mark.parametrize("fast", [True, False])
def test_recomputing_keeps_less_and_gives_the_same_gradient(load: Load, fast: bool) -> None:
    policy, forgetful = load(trained=True, fast=fast), load(trained=True, fast=fast)
    before = kept_bytes(forgetful, settings(), 25)
    forgetful.recompute()
    forgetful.recompute()
    assert kept_bytes(forgetful, settings(), 25) < before / 4
    _, groups = graded_groups(policy)
    for one in (policy, forgetful):
        compute_gradient(one, groups, CONFIG, None, WHOLE)
    found, expected = gradient_of(forgetful), gradient_of(policy)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tight_run_says_so_and_resumes_with_what_it_chose(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(resume: Path | None = None) -> Reinforcement:
        return start(load, resume=resume)

    tight = Fit(40, recompute=True, tape=False)
    with monkeypatch.context() as short:
        short.setattr(Fit, "of", classmethod(lambda *_: tight))
        whole, first = begin(), begin()
    assert [note.partition(":")[0] for note in whole.notes] == ["memory is short"] * 3
    list(whole.steps())
    next(first.steps())
    first.save_checkpoint(tmp_path / "one")
    batches = json.loads((tmp_path / "one" / "manifest.json").read_text())["batches"]
    assert batches == {
        "micro_batch_tokens": 40,
        "wave_tokens": first.policy.wave_tokens,
        "recompute": True,
        "tape": False,
    }
    # There is memory enough by now; the choice stays all the same, and with it every bit.
    second = begin(tmp_path / "one")
    assert second.policy.recomputes
    assert second.micro_batch_tokens == 40
    list(second.steps())
    assert same(second.policy, weights(whole.policy))


def test_running_out_while_sampling_halves_the_waves_and_goes_on(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = start(load)
    expected = [report.rollouts for report in plenty.steps()]
    attend = PackedLayout.attend

    def limited(self: PackedLayout, layer: int, *rest: Any) -> torch.Tensor:
        # In the second layer: what the first recorded of this forward must not be taken for whole.
        if not torch.is_grad_enabled() and layer == 1 and len(self.packed.spans) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attend(self, layer, *rest)

    monkeypatch.setattr(PackedLayout, "attend", limited)
    whole, first = start(load), start(load)
    found = [report.rollouts for report in whole.steps()]
    texts = [[[one.rollout.token_ids for one in step] for step in run] for run in (found, expected)]
    assert texts[0] == texts[1]
    for name, tensor in weights(plenty.policy).items():
        torch.testing.assert_close(whole.policy.adapter[name].detach(), tensor, atol=1e-5, rtol=1e-4)
    assert len(whole.notes) == 1
    assert "step 1: out of memory; sampling in waves of" in whole.notes[0]
    # It was not for the tape.
    assert whole.keeps_tape
    next(first.steps())
    first.save_checkpoint(tmp_path / "one")
    second = start(load, resume=tmp_path / "one")
    assert second.policy.wave_tokens == whole.policy.wave_tokens
    list(second.steps())
    assert same(second.policy, weights(whole.policy))


def test_one_prompt_too_much_gives_advice(load: Load) -> None:
    run = start(load)

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    run.policy.hidden = fail  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match=r"one prompt at a time .* samples_per_prompt"):
        next(run.steps())

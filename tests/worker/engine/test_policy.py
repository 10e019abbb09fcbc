"""Loading, and the adapter on, off and merged."""

import json
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.worker.engine.conftest import Load, plain_logprobs, prompts_for, settings
from worker.engine import general, linear
from worker.engine.attention import PackedLayout
from worker.engine.errors import CheckpointRefused
from worker.engine.linear import Several
from worker.engine.packing import Tree, pack
from worker.engine.policy import Policy


@torch.no_grad()
def logits(policy: Policy, text: tuple[int, ...]) -> torch.Tensor:
    packed = pack((), [Tree(text)])
    return policy.logits(policy.hidden(packed.token_ids, packed.positions, PackedLayout(packed)))


TEXT = (1, 50, 60, 70, 80, 90)


def test_a_fresh_adapter_is_the_base_and_depends_on_the_seed_alone(load: Load) -> None:
    policy, again, other = load(), load(), load(seed=8)
    with policy.base():
        base = logits(policy, TEXT)
    assert torch.equal(logits(policy, TEXT), base)
    for name, parameter in policy.adapter.items():
        assert torch.equal(parameter, again.adapter[name])
        assert ("lora_B" in name) == torch.equal(parameter, other.adapter[name])


def test_merged_equals_adapter_and_base_comes_back_to_the_bit(load: Load) -> None:
    policy = load(trained=True)
    adapted = logits(policy, TEXT)
    with policy.base():
        base = logits(policy, TEXT)
    assert (adapted - base).abs().max() > 0.1
    for _ in range(3):
        with policy.merged():
            torch.testing.assert_close(logits(policy, TEXT), adapted, atol=1e-4, rtol=1e-5)
    with policy.base():
        assert torch.equal(logits(policy, TEXT), base)
    assert torch.equal(logits(policy, TEXT), adapted)


def test_in_16_bits_sampling_feels_the_smallest_adapter(load: Load, tiny_model: Path) -> None:
    """Folded into the weights, one of the first updates would be rounded away."""
    causal = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    causal.requires_grad_(False)
    assert general.plain_if_needed(causal, general.Probe(causal)) is None
    policy = Policy(causal, load().tokenizer, settings(), fast=True)
    policy.reset_adapter(7)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in policy.adapter.items():
        if "lora_B" in name:
            parameter.data.copy_(1e-4 * torch.randn(parameter.shape, generator=draw))
    (layer,) = [one for path, one in policy._layers.items() if path.endswith("layers.0.mlp.down_proj")]
    unmoved = float((layer.merged_weight() == layer.weight).float().mean())
    assert unmoved > 0.5
    with policy.merged():
        merged = logits(policy, TEXT)
    assert torch.equal(merged, logits(policy, TEXT))
    with policy.base():
        assert not torch.equal(merged, logits(policy, TEXT))
    assert policy.copied_bytes == 0


def test_all_linear_layers_are_adapted_and_only_the_adapter_learns(load: Load) -> None:
    policy = load()
    assert len(policy.adapter) == 2 * 7 * 2
    assert policy.parameter_count == sum(
        parameter.numel() for name, parameter in policy._causal.named_parameters() if "lora_" not in name
    )


def test_encode_chat_ends_where_the_assistant_begins(load: Load) -> None:
    policy = load()
    tokens = policy.encode_chat([{"role": "user", "content": "ab"}])
    assert policy.tokenizer.decode(tokens) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"


# peft asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_adapter_s_files_are_what_peft_itself_reads(load: Load, tiny_model: Path, tmp_path: Path) -> None:
    policy = load(trained=True)
    policy.save_adapter(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    # No path of this machine travels with a model.
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path)
    with torch.no_grad():
        theirs = plain(torch.tensor([TEXT])).logits[0]
    torch.testing.assert_close(theirs, logits(policy, TEXT), atol=1e-4, rtol=1e-4)
    fresh = load()
    fresh.load_adapter(tmp_path)
    assert torch.equal(logits(fresh, TEXT), logits(policy, TEXT))
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "adapter_model.safetensors").values()
    )


def test_an_adapter_of_another_rank_is_refused(load: Load, tmp_path: Path) -> None:
    load(lora_rank=2).save_adapter(tmp_path)
    with pytest.raises(CheckpointRefused, match="rank"):
        load().load_adapter(tmp_path)


def test_plain_logprobs_of_the_tests_are_the_model_s_own(load: Load) -> None:
    # The yardstick of the other tests: it must not run through the code it measures.
    policy = load(trained=True)
    (prompt,) = prompts_for(policy, "x")
    answer = (40, 41, 42)
    ours = logits(policy, (*prompt.token_ids, *answer))[len(prompt.token_ids) - 1 : -1].log_softmax(-1)
    theirs = plain_logprobs(policy, prompt, answer).detach()
    torch.testing.assert_close(ours.gather(1, torch.tensor(answer)[:, None])[:, 0], theirs, atol=1e-5, rtol=0)


def test_the_fast_path_and_the_general_one_agree(load: Load, tiny_model: Path) -> None:
    fast, general = load(trained=True), load(trained=True, fast=False)
    assert fast._llama is not None
    assert general._llama is None
    torch.testing.assert_close(logits(fast, TEXT), logits(general, TEXT), atol=1e-5, rtol=1e-5)
    with fast.merged(), general.merged():
        torch.testing.assert_close(logits(fast, TEXT), logits(general, TEXT), atol=1e-5, rtol=1e-5)
    with fast.base(), general.base():
        torch.testing.assert_close(logits(fast, TEXT), logits(general, TEXT), atol=1e-5, rtol=1e-5)


def test_rows_of_one_batch_go_through_adapters_of_their_own(load: Load, tmp_path: Path) -> None:
    policy, other = load(trained=True), load(trained=True, lora_rank=2)
    policy.save_adapter(tmp_path / "first")
    other.save_adapter(tmp_path / "second")
    tokens = torch.tensor(TEXT)
    layout = PackedLayout(pack((), [Tree(TEXT)]))
    places = torch.arange(len(TEXT))
    expected = {"first": logits(policy, TEXT), "second": logits(other, TEXT)}
    with policy.base():
        plain = logits(policy, TEXT)
    policy.add_adapter("first", tmp_path / "first")
    policy.add_adapter("second", tmp_path / "second")
    with torch.no_grad(), policy.serving():
        for name in ("first", "second"):
            with policy.mixed([name] * len(TEXT)):
                mixed = policy.logits(policy.hidden(tokens, places, layout))
            torch.testing.assert_close(mixed, expected[name], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            policy.logits(policy.hidden(tokens, places, layout)), plain, atol=1e-5, rtol=1e-5
        )
        policy.drop_adapter("first")
        # One token a row, three rows in one forward, each standing at its own place.
        rows = pack((), [Tree((token,)) for token in TEXT[:3]])
        with policy.mixed(["second", None, "second"]):
            three = policy.logits(policy.hidden(rows.token_ids, rows.positions, PackedLayout(rows)))
    for row, (token, owner) in enumerate(zip(TEXT[:3], ["second", None, "second"], strict=True)):
        alone = logits(other, (token,)) if owner else _base_logits(policy, (token,))
        torch.testing.assert_close(three[row], alone[0], atol=1e-4, rtol=1e-4)


def _base_logits(policy: Policy, text: tuple[int, ...]) -> torch.Tensor:
    with policy.base():
        return logits(policy, text)


def test_an_adapter_of_another_base_is_refused_by_its_name(load: Load, tmp_path: Path) -> None:
    policy = load()
    policy.save_adapter(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "someone/tiny-too"
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for take in (policy.load_adapter, lambda folder: policy.add_adapter("one", folder)):
        with pytest.raises(CheckpointRefused, match="was trained on tiny-too, and this is tiny"):
            take(tmp_path)
    settings["base_model_name_or_path"] = "someone/tiny"
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    policy.load_adapter(tmp_path)


def test_an_adapter_of_another_model_is_not_served(load: Load, tmp_path: Path) -> None:
    policy = load()
    policy.save_adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    foreign = {f"other.{name}": tensor for name, tensor in tensors.items()}
    save_file(foreign, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointRefused, match="layers this model lacks"):
        policy.add_adapter("other", tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"r": 0}, {"rank_pattern": {"q_proj": 4}}, {"alpha_pattern": {"q_proj": 8}}, {"use_dora": True}],
)
def test_what_is_more_than_plain_lora_is_refused(load: Load, tmp_path: Path, change: dict[str, Any]) -> None:
    """It would be computed with, at another scale than it was trained with."""
    policy = load()
    policy.save_adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointRefused, match="not plain LoRA of one rank"):
        policy.add_adapter("other", tmp_path)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_by_its_tensor(
    load: Load, tmp_path: Path, spoilt: float
) -> None:
    policy = load()
    policy.save_adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = sorted(tensors)[5]
    tensors[name][1, 2] = spoilt
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    before = {key: parameter.clone() for key, parameter in policy.adapter.items()}
    for take in (policy.load_adapter, lambda folder: policy.add_adapter("one", folder)):
        with pytest.raises(CheckpointRefused, match=f"is not finite: {re.escape(name)}"):
            take(tmp_path)
    assert all(torch.equal(parameter, before[key]) for key, parameter in policy.adapter.items())
    assert policy.adapter_bytes("one") == 0


def test_an_adapter_cut_short_or_of_two_ranks_is_refused(load: Load, tmp_path: Path) -> None:
    policy = load()
    policy.save_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    for take in (policy.load_adapter, lambda folder: policy.add_adapter("one", folder)):
        with pytest.raises(CheckpointRefused, match="can't be read"):
            take(tmp_path)
    file.write_bytes(whole)
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    save_file({**tensors, name: tensors[name][:, :3].contiguous()}, file)
    with pytest.raises(CheckpointRefused, match="has other shapes than"):
        policy.add_adapter("one", tmp_path)


def _several(policy: Policy) -> list[Several]:
    return [product._several[1] for product in policy._products() if product._several is not None]


def _answers(policy: Policy, names: list[str | None]) -> torch.Tensor:
    """Return the logits of one token in each row, through an adapter each."""
    rows = pack((), [Tree((token,)) for token in TEXT[: len(names)]])
    with torch.no_grad(), policy.mixed(names):
        return policy.logits(policy.hidden(rows.token_ids, rows.positions, PackedLayout(rows)))


@pytest.fixture
def several(load: Load, tmp_path: Path) -> dict[str, Policy]:
    """Return a policy that serves adapters of ranks 4, 2 and 32, by None, and each of them by its name."""
    found: dict[str, Policy] = {}
    serving = load()
    for name, rank in (("four", 4), ("two", 2), ("wide", 32)):
        found[name] = load(trained=True, lora_rank=rank)
        found[name].save_adapter(tmp_path / name)
        serving.add_adapter(name, tmp_path / name)
    return {**found, "": serving}


@pytest.mark.parametrize("wide", [1, linear._WIDE])
def test_adapters_stand_side_by_side_at_their_own_ranks(
    several: dict[str, Policy], monkeypatch: pytest.MonkeyPatch, wide: int
) -> None:
    monkeypatch.setattr(linear, "_WIDE", wide)
    policy, names = several[""], ["four", None, "wide", "two"]
    with policy.serving():
        found = _answers(policy, names)
    for row, name in enumerate(names):
        token = (TEXT[row],)
        alone = logits(several[name], token) if name else _base_logits(policy, token)
        torch.testing.assert_close(found[row], alone[0], atol=1e-4, rtol=1e-4)
    each = [policy.adapter_bytes(name) for name in ("four", "two", "wide")]
    assert each == [4 * rank * _widths(policy) for rank in (4, 2, 32)]
    assert policy.stacks_bytes == sum(each)


def _widths(policy: Policy) -> int:
    return sum(layer.in_features + layer.out_features for layer in policy._layers.values())


def test_a_stack_serves_whoever_it_holds_and_grows_by_whoever_it_lacks(several: dict[str, Policy]) -> None:
    policy = several[""]
    with policy.serving():
        expected = _answers(policy, ["two", "four", None])
        first = _several(policy)
        assert policy.stacks_bytes == policy.adapter_bytes("two") + policy.adapter_bytes("four")
        # One at a time, as a prompt is read between the steps of others, and fewer than it holds: the same.
        _answers(policy, ["wide", "wide", None])
        _answers(policy, ["four", None, None])
        assert all(ours is before for ours, before in zip(_several(policy), first, strict=True))
        _answers(policy, ["wide", "two", None])
        grown = _several(policy)
        assert not any(ours is before for ours, before in zip(grown, first, strict=True))
        torch.testing.assert_close(_answers(policy, ["two", "four", None]), expected, atol=1e-5, rtol=1e-5)
        assert all(ours is before for ours, before in zip(_several(policy), grown, strict=True))


def test_a_stack_does_not_keep_who_goes_or_is_not_asked_for(
    several: dict[str, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = several[""]
    with policy.serving():
        _answers(policy, ["two", "four", "wide"])
        held = [weakref.ref(stack.down) for stack in _several(policy)]
        policy.drop_adapter("wide")
        assert policy.stacks_bytes == policy.adapter_bytes("wide") == 0
        assert all(one() is None for one in held)
        _answers(policy, ["two", "four", None])
        assert policy.stacks_bytes == policy.adapter_bytes("two") + policy.adapter_bytes("four")
        # An adapter brought again under its name is the new one.
        several["wide"].save_adapter(tmp_path / "other")
        policy.add_adapter("two", tmp_path / "other")
        found = _answers(policy, ["two", "four", None])
        torch.testing.assert_close(found[0], logits(several["wide"], (TEXT[0],))[0], atol=1e-4, rtol=1e-4)
        # Of five, two are asked for again and again.
        for name in ("a", "b", "c"):
            policy.add_adapter(name, tmp_path / "four")
        _answers(policy, ["a", "b", "c", "two", "four"])
        monkeypatch.setattr(linear, "_LATELY", 3)
        for _ in range(4):
            _answers(policy, ["a", "b", None])
        assert policy.stacks_bytes == policy.adapter_bytes("a") + policy.adapter_bytes("b")


def test_an_adapter_may_leave_layers_alone(several: dict[str, Policy], tmp_path: Path) -> None:
    policy, own = several[""], several["four"]
    tensors = load_file(tmp_path / "four" / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "v_proj" in name}
    save_file(kept, tmp_path / "four" / "adapter_model.safetensors")
    policy.add_adapter("some", tmp_path / "four")
    with torch.no_grad():
        for name, parameter in own.adapter.items():
            if "v_proj" not in name:
                parameter.zero_()
    assert policy.adapter_bytes("some") == sum(tensor.nbytes for tensor in kept.values())
    with policy.serving():
        for names in (["some"] * 3, ["some", "wide", None]):
            found = _answers(policy, names)
            torch.testing.assert_close(found[0], logits(own, TEXT[:1])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_stands_on_no_file_and_in_memory_once(
    tiny_model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Its pages would be resident beside the copies, and a file cut short would end the process."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    policy = Policy.load(folder, config=settings())
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert policy._llama is not None
    for joined in policy._llama.products:
        whole = joined.weight.untyped_storage().data_ptr()
        assert all(layer.weight.untyped_storage().data_ptr() == whole for layer in joined.layers)

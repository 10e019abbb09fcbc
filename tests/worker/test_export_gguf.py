"""GGUF files of every architecture written here, read back by transformers; tokenizers by their rule."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from app.services.exports import GGUF_ARCHITECTURES
from tests.tiny_model import build_tokenizer
from worker.export import gguf, vocabulary
from worker.export.source import ExportImpossible

ARCHITECTURES: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "LlamaForCausalLM": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "MistralForCausalLM": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "Qwen2ForCausalLM": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 128}),
}
TEXT = "It's the 21st of May, 1987:\n\n  \"aab\" costs 12.50 DON'T"


def tiny(name: str, **more: Any) -> Any:
    """Build a random model of an architecture, whose weights 16-bit floats can hold exactly."""
    model, config, given = ARCHITECTURES[name]
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = model(
            config(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.1,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=None,
                **given | more,
            )
        )
    for parameter in made.parameters():
        # Biases and norms too: all ones and zeros would tell nothing.
        noise = torch.randn_like(parameter) * 0.1 if parameter.dim() == 1 else 0.0
        parameter.data = (parameter.data + noise).half().float()
    return made.eval()


def source(**more: Any) -> Any:
    """Return as much of a source as the writer reads."""
    base = SimpleNamespace(licence="apache-2.0")
    conversations = [[{"role": "user", "content": TEXT}]]
    return SimpleNamespace(model_id="ft:tiny", base=base, conversations=conversations, **more)


@pytest.mark.parametrize("name", GGUF_ARCHITECTURES)
def test_a_model_comes_back_out_of_its_file(name: str, tmp_path: Path) -> None:
    causal, tokenizer = tiny(name), build_tokenizer()
    gguf.write_gguf(source(), causal, tokenizer, tmp_path / gguf.NAME)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=gguf.NAME,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    again = vocabulary.build(vocabulary.stored_vocabulary(GGUFReader(tmp_path / gguf.NAME).fields))
    ids = again(TEXT, return_tensors="pt").input_ids
    assert ids.tolist() == [tokenizer(TEXT).input_ids]
    with torch.no_grad():
        difference = (loaded(ids).logits - causal(ids).logits).abs().max().item()
    assert difference < 1e-4


def test_what_the_format_can_not_say_is_refused(tmp_path: Path) -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    large = tiny("LlamaForCausalLM")
    large.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    cases = (
        (tiny("LlamaForCausalLM", rope_parameters=scaled), "rotary scaling 'llama3'"),
        (tiny("MistralForCausalLM", sliding_window=64), "sliding window"),
        (large, "16-bit floats can't"),
    )
    for number, (causal, said) in enumerate(cases):
        with pytest.raises(ExportImpossible, match=said):
            gguf.write_gguf(source(), causal, build_tokenizer(), tmp_path / f"{number}.gguf")


@pytest.mark.parametrize("rule", sorted(vocabulary._RULES))
def test_a_tokenizer_is_known_by_how_it_splits(rule: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(vocabulary._RULES[rule])
    found = vocabulary.read_vocabulary(tokenizer, len(tokenizer) + 8, [TEXT])
    again = vocabulary.build(found)
    assert again(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert found.tokens[-1] == f"[PAD{len(tokenizer) + 7}]"


def test_a_tokenizer_without_a_named_rule_is_refused() -> None:
    tokenizer = build_tokenizer()
    words = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    with pytest.raises(ExportImpossible, match="no name for the rule"):
        vocabulary.read_vocabulary(tokenizer, len(tokenizer), [TEXT])

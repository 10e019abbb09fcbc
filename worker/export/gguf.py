"""A merged model as a GGUF file: 16-bit floats for matrices, 32-bit for the rest, the tokenizer's metadata.

Written here for the Llama family. Called by `forms.py`; the tokenizer's part is `vocabulary.py`.

Source: GGUF specification; llama.cpp's Llama reads rotary pairs side by side, so query and key rows are
laid out anew for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from torch import Tensor

from worker.export.source import ExportImpossible, Source
from worker.export.vocabulary import read_vocabulary, texts_of, write_vocabulary

NAME = "model-f16.gguf"
_ARCHITECTURES = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "MistralForCausalLM": MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": MODEL_ARCH.QWEN3,
}
_LARGEST = float(np.finfo(np.float16).max)


def write_gguf(source: Source, causal: Any, tokenizer: Any, path: Path) -> None:
    """Write a merged model and its tokenizer as one file.

    Raises: ExportImpossible for what GGUF, or this writer, has no way to say.
    """
    config = causal.config
    architecture = _ARCHITECTURES.get(type(causal).__name__)
    if architecture is None:
        raise ExportImpossible(f"GGUF is not written here for {type(causal).__name__}.")
    _check(config)
    texts = texts_of(tokenizer, source.conversations)
    vocabulary = read_vocabulary(tokenizer, causal.get_output_embeddings().weight.shape[0], texts)
    writer = GGUFWriter(path, _name(architecture))
    _write_shape(writer, source, config)
    write_vocabulary(writer, vocabulary)
    tensors = list(_tensors(causal, architecture))
    for name, tensor in tensors:
        dtype = np.dtype(np.float32 if tensor.dim() == 1 else np.float16)
        writer.add_tensor_info(name, tuple(tensor.shape), dtype, tensor.numel() * dtype.itemsize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors:
            writer.write_tensor_data(_numbers(name, tensor))
    finally:
        writer.close()


def _name(architecture: MODEL_ARCH) -> str:
    from gguf import MODEL_ARCH_NAMES

    name: str = MODEL_ARCH_NAMES[architecture]
    return name


def _check(config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ExportImpossible(f"GGUF is not written here for rotary scaling '{rope['rope_type']}'.")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ExportImpossible("GGUF is not written here for models with a sliding window.")


def _write_shape(writer: GGUFWriter, source: Source, config: Any) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(source.model_id)
    if source.base.licence is not None:
        writer.add_license(source.base.licence)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(causal: Any, architecture: MODEL_ARCH) -> Iterator[tuple[str, Tensor]]:
    config = causal.config
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in causal.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ExportImpossible(f"GGUF has no name for the model's {name}.")
        if architecture == MODEL_ARCH.LLAMA and ".q_proj." in name:
            tensor = _paired(tensor, config.num_attention_heads)
        if architecture == MODEL_ARCH.LLAMA and ".k_proj." in name:
            tensor = _paired(tensor, config.num_key_value_heads)
        yield written, tensor


def _paired(tensor: Tensor, heads: int) -> Tensor:
    """Return rows in the order (pair, half) instead of (half, pair), head by head."""
    shape = tensor.shape
    return tensor.view(heads, 2, -1, *shape[1:]).transpose(1, 2).reshape(shape)


def _numbers(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dim() == 1:
        return np.ascontiguousarray(tensor.float().numpy())
    if tensor.abs().max() > _LARGEST:
        raise ExportImpossible(f"{name} holds numbers that 16-bit floats can't: take the merged form.")
    return np.ascontiguousarray(tensor.to(torch.float16).numpy())

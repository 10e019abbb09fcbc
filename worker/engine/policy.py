"""The model being trained: frozen base weights and one LoRA adapter, switched on, off, or merged in.

Loading, the two forward halves (tokens to hidden, hidden to logits), the chat template and the adapter's
files live here; what is done with them does not. Built by the trainer and by whatever evaluates or serves a
model.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from worker.engine import attention
from worker.engine.attention import Layout, PackedLayout, attending
from worker.engine.config import TrainingConfig
from worker.engine.errors import CheckpointRefused, UnsupportedModel
from worker.engine.packing import Tree, pack
from worker.engine.seeds import derive, uniform

_WEIGHTS = "adapter_model.safetensors"
# The prefix-shared forward must agree with the model's own to rounding of its number type.
_AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


class Policy:
    """A causal language model with a LoRA adapter; `parameter_count` is the base model's."""

    def __init__(self, causal: Any, tokenizer: Any, adapted: Any, config: TrainingConfig) -> None:
        self.tokenizer = tokenizer
        self.device: torch.device = next(causal.parameters()).device
        self.dtype: torch.dtype = next(causal.parameters()).dtype
        self.stop_ids = _stop_ids(causal, tokenizer)
        self._causal = causal
        self._adapted = adapted
        self._layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
        self._merged: list[Tensor] = []
        self.adapter: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad
        }
        adapter_size = sum(parameter.numel() for parameter in self.adapter.values())
        self.parameter_count = sum(parameter.numel() for parameter in adapted.parameters()) - adapter_size
        self.vocabulary: int = self._causal.get_output_embeddings().weight.shape[0]
        shape = self._causal.config.get_text_config()
        self.context_length: int | None = getattr(shape, "max_position_embeddings", None)
        # Whether the adapter held something before step 1: then the starting model is not the base.
        self.is_tuned = False
        # From the config, never from the memory free today: waves decide the last bit of a product.
        self.wave_tokens = (config.sampling_cache_mib << 20) // _cache_bytes(shape, self.dtype)

    @classmethod
    def load(cls, model_dir: Path, *, config: TrainingConfig) -> Self:
        """Load a model folder and put a fresh adapter on all its linear layers.

        float32 on a CPU, where bfloat16 is emulated and slow; bfloat16 on a GPU. The adapter is float32
        always.
        Raises: UnsupportedModel when the prefix-shared forward does not reproduce the model's own numbers.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        logging.disable_progress_bar()
        cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if cuda else torch.float32
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        causal = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, use_safetensors=True)
        causal = causal.to("cuda" if cuda else "cpu").eval()
        _check_forward(causal)
        settings = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # peft asks transformers for a property by its old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted = peft.get_peft_model(causal, settings)
        settings.base_model_name_or_path = model_dir.name
        policy = cls(causal, tokenizer, adapted, config)
        policy.reset_adapter(config.seed)
        return policy

    def reset_adapter(self, seed: int) -> None:
        """Give the adapter the first weights of this seed: B is zero, so the model is the base."""
        for name, parameter in self.adapter.items():
            if "lora_B" in name:
                nn.init.zeros_(parameter)
                continue
            draw = torch.Generator().manual_seed(derive(seed, "lora", name))
            bound = 1 / math.sqrt(parameter.shape[1])
            first = torch.rand(parameter.shape, generator=draw) * (2 * bound) - bound
            parameter.data.copy_(first)

    # Text in

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Return a conversation's tokens up to where the assistant's next turn begins."""
        encoded = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return tuple(encoded["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return an answer's text without its special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # Numbers through

    def hidden(self, token_ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Return the last hidden states of a row of tokens under a layout. Shapes: [N], [N] -> [N, H]."""
        decoder = self._causal.get_decoder()
        with attending(layout):
            out = decoder(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
        states: Tensor = out.last_hidden_state[0]
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the vocabulary's logits of hidden states, in float32. Shapes: [T, H] -> [T, V]."""
        return _logits(self._causal, hidden)

    # The adapter: on, off, merged

    @contextmanager
    def base(self) -> Iterator[None]:
        """Switch the adapter off: inside, this is the base model."""
        with self._adapted.disable_adapter():
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Fold the adapter into the weights for sampling, so that a token pays nothing for it.

        The sum is written beside the base weights, and leaving points back at those: subtracting would drift.
        """
        originals = [layer.get_base_layer().weight.data for layer in self._layers]
        if not self._merged:
            self._merged = [torch.empty_like(weight) for weight in originals]
        with torch.no_grad():
            for layer, weight, total in zip(self._layers, originals, self._merged, strict=True):
                self._add_adapter(layer, weight, total)
        try:
            for layer, total in zip(self._layers, self._merged, strict=True):
                layer.get_base_layer().weight.data = total
            with self._adapted.disable_adapter():
                yield
        finally:
            for layer, weight in zip(self._layers, originals, strict=True):
                layer.get_base_layer().weight.data = weight

    @staticmethod
    def _add_adapter(layer: Any, weight: Tensor, total: Tensor) -> None:
        (name,) = layer.active_adapters
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        if weight.dtype == up.dtype:
            torch.addmm(weight, up, down, alpha=layer.scaling[name], out=total)
        else:
            total.copy_(weight.float().addmm_(up, down, alpha=layer.scaling[name]))

    # The adapter's files

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter as PEFT lays it out: `adapter_config.json`, `adapter_model.safetensors`."""
        directory.mkdir(parents=True, exist_ok=True)
        settings = self._adapted.peft_config["default"]
        settings.save_pretrained(directory)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._adapter_state().items()}
        save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})

    def load_adapter(self, directory: Path) -> None:
        """Take the adapter's weights from a folder in PEFT's layout.

        Raises: CheckpointRefused when its tensors are not those of this policy's adapter.
        """
        tensors = load_file(directory / _WEIGHTS)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in self._adapter_state().items()}:
            raise CheckpointRefused(f"the adapter in {directory.name} has other layers or another rank")
        peft.set_peft_model_state_dict(self._adapted, tensors)
        self.is_tuned = True

    def _adapter_state(self) -> dict[str, Tensor]:
        # "auto" would ask a model hub over the network whether the vocabulary has grown.
        state: dict[str, Tensor] = peft.get_peft_model_state_dict(self._adapted, save_embedding_layers=False)
        return state


def _logits(causal: Any, hidden: Tensor) -> Tensor:
    config = causal.config.get_text_config()
    logits: Tensor = causal.get_output_embeddings()(hidden).float()
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    return attention.capped(logits, getattr(config, "final_logit_softcapping", None))


def _cache_bytes(shape: Any, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values one token needs in all layers."""
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return int(2 * shape.num_hidden_layers * heads * width * dtype.itemsize)


def _stop_ids(causal: Any, tokenizer: Any) -> tuple[int, ...]:
    configured = causal.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in (tokenizer.eos_token_id, *several) if token is not None}))


@torch.no_grad()
def _check_forward(causal: Any) -> None:
    """Compare the model's own logits with ours on a made-up text, long enough to meet a sliding window.

    The text is laid out as one of two branches: a model that reads the row as one text would notice.
    Raises: UnsupportedModel.
    """
    config = causal.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    length = min(max(24, window + 8), 2048)
    device = next(causal.parameters()).device
    text, decoy = (
        tuple(int(uniform(0, name, place) * config.vocab_size) for place in range(length))
        for name in ("text", "decoy")
    )
    own = causal(input_ids=torch.tensor([text], device=device), use_cache=False).logits[0].float()
    refusal = f"{type(causal).__name__} is not supported: "
    if not causal._can_set_attn_implementation():
        raise UnsupportedModel(refusal + "it does not let its attention be replaced")
    causal.set_attn_implementation(attention.NAME)
    packed = pack(text[:8], [Tree(text[8:16], (decoy[:16], text[16:])), Tree(decoy[:4])], device)
    layout = PackedLayout(packed, remember=True)
    with attending(layout):
        states = causal.get_decoder()(
            input_ids=packed.token_ids[None], position_ids=packed.positions[None], use_cache=False
        ).last_hidden_state[0]
    if len(layout.keys) != config.num_hidden_layers:
        raise UnsupportedModel(refusal + "not all its layers are attention layers")
    second = packed.spans[0].branch_starts[1]
    places = [*range(16), *range(second, second + length - 16)]
    gap = (own - _logits(causal, states[places])).abs().max().item()
    if not gap <= _AGREE[states.dtype] * max(1.0, own.abs().max().item()):
        raise UnsupportedModel(refusal + f"its numbers differ by {gap:.2g} when prompts are shared")

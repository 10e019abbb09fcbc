"""The model being trained: frozen base weights and one LoRA adapter, switched on, off, or merged in.

Loading, the two forward halves (tokens to hidden, hidden to logits), the chat template and the ways the
adapter is in force live here; what is done with them does not. Which forward is taken (`llama.py`,
`general.py` or `plain.py`) is decided on loading. Built by whatever trains, evaluates or serves a model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from worker.engine import adapter, general
from worker.engine.attention import Layout, PackedLayout
from worker.engine.config import TrainingConfig
from worker.engine.decoding import DecodeLayout
from worker.engine.errors import UnsupportedModel
from worker.engine.linear import Joined, Mixing, Mode, Product, Stack
from worker.engine.llama import Llama
from worker.engine.memory import check_room, file_mappings
from worker.engine.packing import Packed
from worker.engine.pasts import FreeRows, Past, Pasts, Rows, TextPast
from worker.engine.plain import Plain, PlainPast, PlainPasts, PlainRows
from worker.engine.recompute import recompute_layers
from worker.engine.seeds import derive
from worker.engine.tape import Tape


class Policy:
    """A causal language model with a LoRA adapter; `parameter_count` is the base model's."""

    def __init__(
        self, causal: Any, tokenizer: Any, config: TrainingConfig, *, fast: bool, plain: Plain | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.device: torch.device = next(causal.parameters()).device
        self.dtype: torch.dtype = next(causal.parameters()).dtype
        self.stop_ids = _stop_ids(causal, tokenizer)
        self.parameter_count = sum(parameter.numel() for parameter in causal.parameters())
        self._causal = causal
        self._mode = Mode()
        self._mixing = Mixing(self.device, self.dtype)
        self._layers = adapter.adapt(causal, config, self._mode)
        self._plain = plain
        if plain is not None:
            plain.mode = self._mode
        self._llama = Llama.of(causal, self._mode) if fast and plain is None else None
        self.adapter: dict[str, nn.Parameter] = {
            f"{adapter.PREFIX}{path}.{part}.default.weight": getattr(layer, part)
            for path, layer in self._layers.items()
            for part in ("lora_A", "lora_B")
        }
        self.vocabulary: int = self._causal.get_output_embeddings().weight.shape[0]
        self._head: Product | None = None
        self.tape: Tape | None = None
        shape = self._causal.config.get_text_config()
        self.context_length: int | None = getattr(shape, "max_position_embeddings", None)
        self.layer_count: int = shape.num_hidden_layers
        self.width: int = shape.hidden_size
        self.recomputes = False
        # Whether the adapter held something before step 1: then the starting model is not the base.
        self.is_tuned = False
        self.base_name = ""
        # From the config, never from the memory free today: waves decide the last bit of a product.
        self.wave_tokens = (config.sampling_cache_mib << 20) // _cache_bytes(shape, self.dtype)

    @classmethod
    def load(cls, model_dir: Path, *, config: TrainingConfig, fast: bool = True) -> Self:
        """Load a model folder and put a fresh adapter on all its linear layers.

        float32 on a CPU, where bfloat16 is emulated and slow; bfloat16 on a GPU. The adapter is float32
        always. Without `fast` the general path is taken even where a faster one knows the model. The plain
        path is taken where sharing prefixes does not give the model's own numbers; `note` says so.
        Raises: UnsupportedModel when that does not either; ModelTooLarge before anything is loaded.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        logging.disable_progress_bar()
        cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if cuda else torch.float32
        check_room(model_dir, config, torch.device("cuda" if cuda else "cpu"), dtype)
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        causal = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, use_safetensors=True)
        causal = causal.to("cuda" if cuda else "cpu").eval().requires_grad_(False)
        probe = general.Probe(causal)
        plain = general.plain_if_needed(causal, probe)
        policy = cls(causal, tokenizer, config, fast=fast, plain=plain)
        policy._leave_files()
        if policy._llama is not None:
            with policy.base():
                probe.check(lambda packed, layout: policy.hidden(packed.token_ids, packed.positions, layout))
        policy.base_name = model_dir.name
        policy.reset_adapter(config.seed)
        return policy

    def _leave_files(self) -> None:
        """Copy the weights that still are a mapped file's.

        Its pages would stay in memory beside the copies that joined layers made, and whoever cuts the file
        short would end this process.
        """
        mappings = file_mappings()
        for parameter in self._causal.parameters():
            if parameter.device.type == "cpu" and any(parameter.data_ptr() in one for one in mappings):
                parameter.data = parameter.data.clone()

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
        """Return a conversation's tokens up to where the assistant's next turn begins.

        Raises: UnsupportedModel without a chat template; jinja2's TemplateError when the template refuses.
        """
        if self.tokenizer.chat_template is None:
            raise UnsupportedModel(
                f"{self.base_name} has no chat template: put a chat_template.jinja into the model's folder, "
                "or take its instruction-tuned form."
            )
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
        if self._plain is not None:
            return self._plain.hidden(token_ids, layout)
        if self._llama is not None:
            return self._llama.hidden(token_ids, positions, layout, self.tape)
        return general.hidden(self._causal, token_ids, positions, layout)

    def decode_rows(self, token_ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Return the last hidden states of one new token in each row. Shapes: [R], [R] -> [R, H]."""
        return self.hidden(token_ids, positions, layout)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the vocabulary's logits of hidden states, in float32. Shapes: [T, H] -> [T, V]."""
        if self._plain is not None and self._plain.ends_in_logits:
            return hidden.float()
        if torch.is_grad_enabled():
            return general.logits(self._causal, hidden)
        if self._head is None:
            output = self._causal.get_output_embeddings()
            self._head = Product(output.weight, output.bias)
        return general.scaled(self._causal, self._head(hidden))

    def rows(self, prefill: PackedLayout, row_prompts: list[int]) -> DecodeLayout | PlainRows:
        """Return the layout of rows that go on from prompts just read."""
        if self._plain is not None:
            return PlainRows.after(prefill, row_prompts)
        return DecodeLayout(prefill, row_prompts)

    def new_past(self) -> TextPast:
        """Return a text of which nothing was read yet. What was goes on as rows of `new_rows`."""
        if self._plain is not None:
            return PlainPast(torch.empty(1, 0, dtype=torch.long, device=self.device))
        return Past()

    def new_rows(self) -> FreeRows:
        """Return a layout without rows, for those that come and go."""
        return Rows(self.device) if self._plain is None else PlainRows(self.device)

    def reading(self, pasts: Sequence[Any], lengths: Sequence[int]) -> Layout:
        """Return the layout of texts that read on, one behind the other. `lengths`: new tokens of each."""
        return Pasts(pasts, lengths) if self._plain is None else PlainPasts(pasts, lengths)

    def recompute(self) -> None:
        """Keep each layer's input alone for the backward pass, from now on: less memory, more time."""
        if self.recomputes:
            return
        self.recomputes = True
        if self._llama is not None:
            self._llama.checkpointing = True
        else:
            recompute_layers(self._causal)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield every weight there is, the model's and the adapter's."""
        yield from self._causal.parameters()

    @property
    def copied_bytes(self) -> int:
        """The size of the weights that sampling lays out a second time: in 16 bits it needs none."""
        if self.dtype != torch.float32:
            return 0
        head = self._causal.get_output_embeddings().weight
        return int(head.nbytes) + sum(layer.weight.nbytes for layer in self._layers.values())

    @property
    def shares_prompts(self) -> bool:
        """Whether the answers to a prompt stand on one copy of it."""
        return self._plain is None

    @property
    def note(self) -> str | None:
        """What a person should know of how this model is run."""
        return None if self._plain is None else self._plain.note

    @property
    def head(self) -> Tensor:
        """The output head's weight: [V, H]."""
        weight: Tensor = self._causal.get_output_embeddings().weight
        return weight

    # What sampling computed, for training

    @contextmanager
    def recording(self, tape: Tape) -> Iterator[None]:
        """Record every forward inside, where the model's path can; no rows on it: it could not."""
        self.tape = tape
        try:
            yield
        finally:
            self.tape = None

    def expect(self, lines: int) -> None:
        """Hear how many tokens the forwards to come read at most, and make room for them on the tape."""
        if self.tape is not None and self._llama is not None:
            self.tape.expect(lines, self._llama.line_bytes)

    @property
    def next_line(self) -> int | None:
        """The line the next token read will have on the tape; None where nothing is recorded."""
        if self.tape is None or self.tape.spilled or self._llama is None:
            return None
        return self.tape.lines

    def replay(self, packed: Packed, layout: Layout, tape: Tape, lines: Tensor) -> Tensor:
        """Return what `hidden` would, with gradient, from the products recorded at these lines."""
        if self._llama is None:
            raise RuntimeError("only a forward that records can replay")
        return self._llama.replay(packed.token_ids, packed.positions, layout, tape, lines)

    # The adapter: on, off, merged; or several, row by row

    @contextmanager
    def base(self) -> Iterator[None]:
        """Switch the adapter off: inside, this is the base model."""
        with self._computing("base"):
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Fold the adapter into the weights for sampling, so that a token pays nothing for it.

        The sums lie beside the base weights and are dropped on leaving: subtracting would drift. In 16 bits
        the first hundreds of updates are smaller than the distance between two weights and would be rounded
        away; there the adapter is multiplied by itself, as in training.
        """
        if self.dtype != torch.float32:
            with self._computing("adapted"):
                yield
            return
        with torch.no_grad():
            for product in self._products():
                product.ready(merged=True)
        try:
            with self._computing("merged"):
                yield
        finally:
            for product in self._products():
                product.release()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Lay the base weights out for many calls; inside, `mixed` says which adapter each row takes."""
        with torch.no_grad():
            for product in self._products():
                product.ready(merged=False)
        try:
            with self._computing("mixed"):
                yield
        finally:
            for product in self._products():
                product.release()

    @contextmanager
    def mixed(self, names: Sequence[str | None]) -> Iterator[None]:
        """Send token i of each forward through the added adapter `names[i]`; None is the base model."""
        if self._plain is None:
            self._mode.mixture = self._mixing.of(names)
        else:
            self._plain.names = names
        try:
            yield
        finally:
            self._mode.mixture = None
            if self._plain is not None:
                self._plain.names = ()

    def add_adapter(self, name: str, directory: Path) -> None:
        """Hold an adapter of this base, in PEFT's layout, ready for `mixed`.

        Raises: CheckpointRefused when it was trained on another base, or its tensors don't belong to this
        model's layers.
        """
        found = adapter.read(self._layers, directory, self.base_name)
        parts = {self._layers[path]: part for path, part in found.items()}
        laid_out = [
            (product, Stack.of([parts[layer] for layer in product.layers], product.weight))
            for product in self._products()
        ]
        self.drop_adapter(name)
        for product, stack in laid_out:
            product.add(name, stack)

    def adapter_bytes(self, name: str) -> int:
        """Return the memory of an adapter that `add_adapter` brought."""
        return sum(product.adapter_bytes(name) for product in self._products())

    @property
    def stacks_bytes(self) -> int:
        """The memory of several adapters laid out together, beside their own: as much again at most."""
        return sum(product.stack_bytes for product in self._products())

    @property
    def weight_bytes(self) -> int:
        """The memory of the weights, with those laid out once more while they are used for many calls."""
        own: int = sum(parameter.nbytes for parameter in self._causal.parameters())
        return own * (2 if self.device.type == "cpu" else 1)

    def drop_adapter(self, name: str) -> None:
        """Let go of an adapter that `add_adapter` brought."""
        self._mixing.forget(name)
        for product in self._products():
            product.drop(name)

    @contextmanager
    def _computing(self, way: Literal["adapted", "base", "merged", "mixed"]) -> Iterator[None]:
        before, self._mode.way = self._mode.way, way
        try:
            yield
        finally:
            self._mode.way = before

    def _products(self) -> Sequence[Joined]:
        if self._llama is not None:
            return self._llama.products
        return [layer.product for layer in self._layers.values()]

    # The adapter's files

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter as PEFT lays it out: `adapter_config.json`, `adapter_model.safetensors`."""
        adapter.write(self._layers, directory, self.base_name)

    def load_adapter(self, directory: Path) -> None:
        """Take the adapter's weights from a folder in PEFT's layout.

        Raises: CheckpointRefused when it was trained on another base model, or its tensors are not those of
        this policy's adapter.
        """
        adapter.load(self._layers, directory, self.base_name)
        self.is_tuned = True


def _cache_bytes(shape: Any, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values one token needs in all layers."""
    queries = getattr(shape, "num_attention_heads", None) or 1  # a state space has none: as if all were kept
    heads = getattr(shape, "num_key_value_heads", None) or queries
    width = getattr(shape, "head_dim", None) or shape.hidden_size // queries
    return int(2 * shape.num_hidden_layers * heads * width * dtype.itemsize)


def _stop_ids(causal: Any, tokenizer: Any) -> tuple[int, ...]:
    configured = causal.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in (tokenizer.eos_token_id, *several) if token is not None}))

"""The three forms: how each is written into a folder, and how its model is loaded from there again.

Loading uses what a stranger would use (transformers, peft), and nothing of what is in memory. Called by the
process and by the bench.
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from gguf import GGUFReader
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from worker.export import gguf
from worker.export.parity import ANSWER_TOKENS
from worker.export.source import Source
from worker.export.vocabulary import build, stored_vocabulary

_ROWS = 8
# What of a base model's folder goes along, as it is. The adapter stands on the base's own config.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_APACHE = Path(__file__).resolve().parents[2] / "LICENSE"


def dtype_of(source: Source) -> str:
    """Return the number type a form's weights are written in."""
    if source.form == "adapter":
        return "float32"
    if source.form == "gguf":
        return "float16"
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(source.base_dir).dtype
    return str(stored or torch.float32).removeprefix("torch.")


def write(source: Source, folder: Path) -> None:
    """Write a form's weights, and what comes with the base model, into an empty folder.

    Raises: ExportImpossible when the form can't hold this model.
    """
    for pattern in _TOKENIZER:
        for path in source.base_dir.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    if not [*folder.glob("LICEN[SC]E*")] and (source.base.licence or "").lower() == "apache-2.0":
        shutil.copyfile(_APACHE, folder / "LICENSE")
    if source.form == "adapter":
        for name in _ADAPTER:
            shutil.copyfile(source.adapter_dir / name, folder / name)
        return
    causal = _merged(source)
    if source.form == "gguf":
        gguf.write_gguf(source, causal, AutoTokenizer.from_pretrained(folder), folder / gguf.NAME)
    else:
        causal.to(getattr(torch, dtype_of(source))).save_pretrained(folder)


def _merged(source: Source) -> Any:
    """Return the base with the adapter added to its weights, summed in 32 bits."""
    with _quiet():
        causal = AutoModelForCausalLM.from_pretrained(source.base_dir, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(causal, source.adapter_dir).merge_and_unload()


class Loaded:
    """An archive's model and tokenizer, loaded from its folder. Source: `parity.Artifact`."""

    def __init__(self, causal: Any, tokenizer: Any) -> None:
        self._causal = causal.eval()
        self._tokenizer = tokenizer
        stops = causal.generation_config.eos_token_id
        several = stops if isinstance(stops, list) else [stops]
        self._stops = sorted({stop for stop in (tokenizer.eos_token_id, *several) if stop is not None})

    @classmethod
    def of(cls, source: Source, folder: Path) -> "Loaded":
        """Load what a folder holds."""
        with _quiet():
            if source.form == "gguf":
                tokenizer = build(stored_vocabulary(GGUFReader(folder / gguf.NAME).fields))
                causal = AutoModelForCausalLM.from_pretrained(
                    folder,
                    gguf_file=gguf.NAME,
                    dtype=torch.float32,
                    quantization_config=GgufConfig(dequantize=True),
                )
                return cls(causal, tokenizer)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            if source.form == "merged":
                return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer)
            causal = AutoModelForCausalLM.from_pretrained(source.base_dir, dtype=torch.float32)
            return cls(peft.PeftModel.from_pretrained(causal, folder), tokenizer)

    def encode(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """Return a conversation's tokens."""
        encoded = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return tuple(encoded["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return an answer's text."""
        ended = token_ids and token_ids[-1] in self._stops
        return str(self._tokenizer.decode(token_ids[:-1] if ended else token_ids, skip_special_tokens=True))

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the logits after each token. Shapes: [N] -> [N, V]."""
        logits: Tensor = self._causal(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return logits

    def answers(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the greedy answers, each with its stop token."""
        found: list[tuple[int, ...]] = [()] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            for index, answer in zip(rows, self._greedy([prompts[row] for row in rows]), strict=True):
                found[index] = answer
        return found

    def _greedy(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        longest = max(len(prompt) for prompt in prompts)
        padding = self._stops[0] if self._stops else 0
        ids = torch.tensor([[padding] * (longest - len(one)) + list(one) for one in prompts])
        seen = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        # Not the folder's defaults: a penalty or a temperature there would be no fault of the weights.
        plain = GenerationConfig(
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            eos_token_id=self._stops or None,
            pad_token_id=padding,
        )
        made = self._causal.generate(input_ids=ids, attention_mask=seen, generation_config=plain)
        for row in made[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in self._stops), len(row) - 1)
            yield tuple(row[: end + 1])


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        # peft asks transformers for a property by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield

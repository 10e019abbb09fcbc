"""A tokenizer in a GGUF file: how it is written, and how it is read back to be compared.

GGUF has tokens, merges and the *name* of the rule that splits a text before merging; a reader knows the
rules by name. So the rule is found by trying: the one that splits like the tokenizer itself.

Source: GGUF specification (keys `tokenizer.ggml.*`, token types); the rules are llama.cpp's, by their names.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from worker.export.source import ExportImpossible

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# By name: what splits digits off first, and the pattern of what stays together.
_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_RULES: dict[str, list[Any]] = {
    "gpt-2": [_WORDS],
    "smollm": [_DIGITS, _WORDS],
    "qwen2": [
        pre_tokenizers.Split(
            Regex(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"), "isolated"
        ),
        _BYTES,
    ],
    "llama-bpe": [
        pre_tokenizers.Split(
            Regex(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"), "isolated"
        ),
        _BYTES,
    ],
}
# Texts on which the rules differ from each other.
_PROBES = ("It's 1234567 o'clock, DON'T  wait\n\n  42.5 € für «Straße» 東京 ok?!\r\n\tx= 3+4;", " 007  9\n")
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unk_token_id", "padding": "pad_token_id"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the file says of a tokenizer."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    rule: str
    special: dict[str, int]
    template: str | None
    adds_bos: bool


def read_vocabulary(tokenizer: Any, size: int, texts: Iterable[str]) -> Vocabulary:
    """Return a tokenizer as GGUF describes one, for a model of `size` tokens.

    Raises: ExportImpossible for a tokenizer that is no byte-level BPE, or whose rule GGUF has no name for.
    """
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    if inner["model"]["type"] != "BPE" or inner["model"].get("byte_fallback"):
        raise ExportImpossible("GGUF is written here for byte-level BPE tokenizers; this model has another.")
    words = {**inner["model"]["vocab"], **{one["content"]: one["id"] for one in inner["added_tokens"]}}
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for word, index in words.items():
        if index < size:
            tokens[index], types[index] = word, int(TokenType.NORMAL)
    for one in inner["added_tokens"]:
        types[one["id"]] = int(TokenType.CONTROL if one["special"] else TokenType.USER_DEFINED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in inner["model"]["merges"]]
    special = {name: getattr(tokenizer, attribute) for name, attribute in _SPECIAL.items()}
    start = tokenizer("a").input_ids[:1]
    probes = [*_PROBES, *texts]
    for rule in _RULES:
        made = Vocabulary(
            tokens,
            types,
            merges,
            rule,
            {name: index for name, index in special.items() if index is not None},
            tokenizer.chat_template,
            bool(start and start[0] == tokenizer.bos_token_id),
        )
        built = build(made)
        if all(_ids(built, text) == _ids(tokenizer, text) for text in probes):
            return made
    raise ExportImpossible("GGUF has no name for the rule by which this model's tokenizer splits a text.")


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write a tokenizer's keys."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for name, index in vocabulary.special.items():
        adders[name](index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def stored_vocabulary(fields: Any) -> Vocabulary:
    """Return the tokenizer that a GGUF file's fields describe."""

    def value(key: str) -> Any:
        field = fields.get(f"tokenizer.{key}")
        return None if field is None else field.contents()

    return Vocabulary(
        tokens=value("ggml.tokens"),
        types=value("ggml.token_type"),
        merges=value("ggml.merges"),
        rule=value("ggml.pre"),
        special={name: index for name in _SPECIAL if (index := value(f"ggml.{name}_token_id")) is not None},
        template=value("chat_template"),
        adds_bos=bool(value("ggml.add_bos_token")),
    )


def build(vocabulary: Vocabulary) -> Any:
    """Return a working tokenizer made of nothing but what the file says."""
    added = [
        AddedToken(token, special=kind == TokenType.CONTROL, normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    inner = Tokenizer(
        tokenizer_models.BPE(
            {token: index for index, token in enumerate(vocabulary.tokens)},
            [_pair(merge) for merge in vocabulary.merges],
            ignore_merges=vocabulary.rule == "llama-bpe",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(_RULES[vocabulary.rule])
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens(added)
    named = {name: vocabulary.tokens[index] for name, index in vocabulary.special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=named.get("bos"),
        eos_token=named.get("eos"),
        unk_token=named.get("unk"),
        pad_token=named.get("padding"),
        chat_template=vocabulary.template,
        clean_up_tokenization_spaces=False,
    )


def _pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def texts_of(tokenizer: Any, conversations: Iterable[Sequence[dict[str, Any]]]) -> list[str]:
    """Return conversations as the texts their chat template makes of them."""
    return [
        str(tokenizer.apply_chat_template(list(one), add_generation_prompt=True, tokenize=False))
        for one in conversations
    ]

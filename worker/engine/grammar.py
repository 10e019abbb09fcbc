"""Constrained answers: which tokens may come next under a JSON schema. llguidance does the parsing.

The sampler asks a cursor token by token; the update replays the same cursor over finished answers, so both
see the same distribution. Where the grammar leaves one way on (a key's name, a bracket), the token is
forced: its log-prob is 0 and it teaches nothing.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from torch import Tensor

Bits = NDArray[np.int32]
"""One bit a token of the vocabulary, set where the token may come next."""

# One way to write spaces: with free white space every bracket would be a choice, and most of what is sampled
# and trained would be layout. These separators are those of Python's json.dumps.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """A compiled grammar; `cursor()` starts a new answer under it."""

    def __init__(self, source: str, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._root = LLMatcher(tokenizer, source)
        if self._root.is_error():
            raise ValueError(f"the schema cannot constrain answers: {self._root.get_error().splitlines()[0]}")

    @classmethod
    def from_json_schema(
        cls, schema: dict[str, Any], tokenizer: Any, *, vocabulary: int | None = None
    ) -> Self:
        """Compile a JSON schema for a tokenizer; `vocabulary` is the model's, where it is the larger one.

        Whoever compiles many gives the tokenizer's `words_of` instead, which take longer than a schema.
        Raises: ValueError, with the reason, for a schema that cannot be compiled.
        """
        wrapped = tokenizer if isinstance(tokenizer, LLTokenizer) else words_of(tokenizer, vocabulary)
        return cls(LLMatcher.grammar_from_json_schema(schema, overrides=_LAYOUT), wrapped)

    def cursor(self) -> "Cursor":
        """Return a cursor before the first token of an answer."""
        return Cursor(self._root.deep_copy(), self._tokenizer)


def words_of(tokenizer: Any, vocabulary: int | None = None) -> LLTokenizer:
    """Return a tokenizer's words as grammars read them."""
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=max(vocabulary or 0, len(tokenizer)))


class Cursor:
    """A place in one answer."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._words = tokenizer.vocab_size
        self._stop = tokenizer.eos_token
        self._forced: deque[int] = deque()

    def options(self) -> int | Bits:
        """Return the one token that can come next, or the bits of all that can.

        Where the coming text is fixed, so is its spelling in tokens, even if other tokens could spell it.
        """
        if self._forced:
            return self._forced[0]
        if self._matcher.is_stopped():
            return int(self._stop)
        self._forced.extend(self._matcher.compute_ff_tokens())
        if self._forced:
            return self._forced[0]
        bits: Bits = llguidance.numpy.allocate_token_bitmask(1, self._words)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, bits)
        if int(np.bitwise_count(bits.view(np.uint32)).sum()) == 1:
            return int(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0])
        row: Bits = bits[0]
        return row

    def take(self, token: int) -> None:
        """Move past a token that the last `options()` allowed.

        Raises: ValueError for any other token.
        """
        if self._forced:
            expected = self._forced.popleft()
            if token != expected:
                raise ValueError(f"token {token} stands where the grammar forces {expected}")
        if token == self._stop and self._matcher.is_stopped():
            return
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is not allowed by the grammar: {self._matcher.get_error()}")


def disallowed(rows: Sequence[Bits], vocabulary: int) -> Tensor:
    """Return where tokens may not come next. Shapes: rows of bits -> [R, V], true where masked."""
    packed = np.stack(rows).view(np.uint8)
    allowed = np.unpackbits(packed, axis=1, count=vocabulary, bitorder="little")
    return torch.from_numpy(allowed == 0)


def replay(grammar: Grammar, token_ids: Sequence[int]) -> list[Bits | None]:
    """Return for each token of an answer the bits it was drawn under; None where it was forced.

    Raises: ValueError when the answer does not follow the grammar.
    """
    cursor = grammar.cursor()
    choices: list[Bits | None] = []
    for token in token_ids:
        options = cursor.options()
        choices.append(None if isinstance(options, int) else options)
        cursor.take(token)
    return choices

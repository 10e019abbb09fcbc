"""Tokens as text, one at a time, and as the bytes OpenAI's log-probs tell of.

A character may come in several tokens: its text waits for the last of them. Called by `choices.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

_UNFINISHED = "\ufffd"


@dataclass(slots=True)
class Spoken:
    """How far one answer's text has been told: the tokens of its last stretch, and what was told of them."""

    tokens: list[int] = field(default_factory=list)
    told: int = 0  # the first so many tokens' text is out


class Spelling:
    """A tokenizer's way from tokens to text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def next(self, spoken: Spoken, token: int) -> str:
        """Return the text that one more token makes sure."""
        spoken.tokens.append(token)
        return self._more(spoken, sure=True)

    def rest(self, spoken: Spoken) -> str:
        """Return the text of the tokens that never became a whole character."""
        return self._more(spoken, sure=False)

    def _more(self, spoken: Spoken, *, sure: bool) -> str:
        # A token's text can depend on the one before it, so the stretch last told is spelt with it.
        before = self._text(spoken.tokens[: spoken.told])
        now = self._text(spoken.tokens)
        if sure and now.endswith(_UNFINISHED):
            return ""
        spoken.tokens = spoken.tokens[spoken.told :]
        spoken.told = len(spoken.tokens)
        return now[len(before) :]

    def _text(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def logprob(self, token: int, logprob: float, likeliest: Sequence[tuple[int, float]]) -> dict[str, Any]:
        """Return OpenAI's entry of one token and its alternatives."""
        others = [{**self._spelt(other), "logprob": value} for other, value in likeliest]
        return {**self._spelt(token), "logprob": logprob, "top_logprobs": others}

    def _spelt(self, token: int) -> dict[str, Any]:
        raw = self.spell(token)
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}

    def spell(self, token: int) -> bytes:
        """Return a token's bytes, of which a character may need several tokens'."""
        text = str(self._tokenizer.decode([token]))
        if _UNFINISHED not in text:
            return text.encode()
        # Part of a character: byte-level vocabularies write each byte as a letter, others as <0xE2>.
        word = str(self._tokenizer.convert_ids_to_tokens(token))
        if len(word) == 6 and word.startswith("<0x"):
            return bytes([int(word[3:5], 16)])
        letters = _letters()
        if all(letter in letters for letter in word):
            return bytes(letters[letter] for letter in word)
        return text.encode()


@cache
def _letters() -> dict[str, int]:
    """Return which byte each letter of a byte-level vocabulary stands for. Source: GPT-2's encoder."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}

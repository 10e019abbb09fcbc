"""The prefix cache: what was read of earlier prompts, so that a shared beginning is read once.

Kept by adapter, since other weights make other keys and values of the same text. The oldest use goes first.
Used by `batch.py`.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence

from worker.engine.packing import Tokens, shared_length
from worker.engine.pasts import TextPast

# A shorter beginning, such as a template's first words, is not worth its copy.
_LEAST = 16


class Prefixes:
    """Pasts of whole prompts."""

    def __init__(self, new_past: Callable[[], TextPast]) -> None:
        self._new_past = new_past
        self._kept: OrderedDict[tuple[str | None, Tokens], TextPast] = OrderedDict()
        self._sorted: dict[str | None, list[Tokens]] = {}
        self.nbytes = 0

    def find(self, adapter: str | None, tokens: Sequence[int]) -> TextPast:
        """Return the longest past that these tokens begin with, leaving at least one to read.

        It may be empty. What is read on from it leaves what is kept as it is.
        """
        wanted = tuple(tokens[:-1])
        begun = wanted
        texts = self._sorted.get(adapter, [])
        while len(begun) >= _LEAST:
            # In their order, the two texts between which this one would stand begin with most of it.
            place = bisect_right(texts, begun)
            near = [(shared_length([text, wanted]), text) for text in texts[max(0, place - 1) : place + 1]]
            for length, text in sorted(near, reverse=True):
                past = self._kept[adapter, text].head(length) if length >= _LEAST else self._new_past()
                if len(past):
                    self._kept.move_to_end((adapter, text))
                    return past
            # Some pasts can't be cut. One that is wanted whole stands further ahead, and what stands before
            # this text begins with it.
            begun = wanted[: min(near[0][0], len(begun) - 1)] if place else ()
        return self._new_past()

    def keep(self, adapter: str | None, tokens: Sequence[int], past: TextPast) -> None:
        """Keep what was read of a prompt."""
        text = tuple(tokens)
        if (adapter, text) in self._kept:
            self._kept.move_to_end((adapter, text))
            return
        self._kept[adapter, text] = past
        insort(self._sorted.setdefault(adapter, []), text)
        self.nbytes += past.nbytes

    def shrink(self, nbytes: int) -> None:
        """Forget the longest unused until no more than so many bytes are kept."""
        while self._kept and self.nbytes > nbytes:
            (adapter, text), past = self._kept.popitem(last=False)
            texts = self._sorted[adapter]
            del texts[bisect_left(texts, text)]
            self.nbytes -= past.nbytes

    def forget(self, adapter: str) -> None:
        """Forget what was read through an adapter."""
        for text in self._sorted.pop(adapter, ()):
            self.nbytes -= self._kept.pop((adapter, text)).nbytes

"""The prefix cache: what was read of earlier prompts, so that a shared beginning is read once.

Kept by adapter, since other weights make other keys and values of the same text. The oldest use goes first.
Used by `batch.py`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from worker.engine.pasts import TextPast

# A shorter beginning, such as a template's first words, is not worth its copy.
_LEAST = 16

Key = tuple[str | None, tuple[int, ...]]


class Prefixes:
    """Pasts of whole prompts."""

    def __init__(self, new_past: Callable[[], TextPast]) -> None:
        self._new_past = new_past
        self._kept: OrderedDict[Key, tuple[NDArray[np.int64], TextPast]] = OrderedDict()
        self.nbytes = 0

    def find(self, adapter: str | None, tokens: Sequence[int]) -> TextPast:
        """Return the longest past that these tokens begin with, leaving at least one to read.

        It may be empty. What is read on from it leaves what is kept as it is.
        """
        wanted = np.asarray(tokens[:-1])
        best: Key | None = None
        length = _LEAST - 1
        for key, (kept, _) in self._kept.items():
            most = min(len(kept), len(wanted))
            if key[0] != adapter or most <= length:
                continue
            differing = np.flatnonzero(kept[:most] != wanted[:most])
            shared = int(differing[0]) if len(differing) else most
            if shared > length:
                best, length = key, shared
        if best is None:
            return self._new_past()
        self._kept.move_to_end(best)
        return self._kept[best][1].head(length)

    def keep(self, adapter: str | None, tokens: Sequence[int], past: TextPast) -> None:
        """Keep what was read of a prompt."""
        key = (adapter, tuple(tokens))
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        self._kept[key] = (np.asarray(tokens), past)
        self.nbytes += past.nbytes

    def shrink(self, nbytes: int) -> None:
        """Forget the longest unused until no more than so many bytes are kept."""
        while self._kept and self.nbytes > nbytes:
            _, (_, past) = self._kept.popitem(last=False)
            self.nbytes -= past.nbytes

    def forget(self, adapter: str) -> None:
        """Forget what was read through an adapter."""
        for key in [key for key in self._kept if key[0] == adapter]:
            self.nbytes -= self._kept.pop(key)[1].nbytes

"""The queue: bounded, and fair to whoever asks, however much another asks for.

Each source of requests has a line of its own and the lines take turns. Used by `batch.py` on the thread that
computes; nothing here is locked.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """Lines of waiting requests by source."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def add(self, source: str, one: T) -> None:
        """Put a request at the end of its source's line."""
        self._lines.setdefault(source, deque()).append(one)

    def take(self) -> T:
        """Return the next request: of the source whose turn it is, its oldest."""
        source, line = next(iter(self._lines.items()))
        one = line.popleft()
        # To the back, behind the sources that wait.
        del self._lines[source]
        if line:
            self._lines[source] = line
        return one

    def remove(self, gone: Callable[[T], bool]) -> list[T]:
        """Take out and return those that are `gone`."""
        found = [one for one in self if gone(one)]
        for source, line in list(self._lines.items()):
            kept = deque(one for one in line if not gone(one))
            if kept:
                self._lines[source] = kept
            else:
                del self._lines[source]
        return found

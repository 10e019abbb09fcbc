"""The queue: fair to whoever asks, however much another asks for.

Each source of requests has a line of its own and the lines take turns. Used by `batch.py` on the thread that
computes; nothing here is locked.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """Lines of what waits, by source."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def add(self, source: str, one: T) -> None:
        """Put one at the end of its source's line."""
        self._lines.setdefault(source, deque()).append(one)

    def put_back(self, source: str, one: T) -> None:
        """Put one that had been taken at the head of its source's line, behind the other sources' turns."""
        self._lines.setdefault(source, deque()).appendleft(one)

    def heads(self) -> Iterator[tuple[str, T]]:
        """Yield each source with its oldest, in the order of their turns."""
        for source, line in self._lines.items():
            yield source, line[0]

    def take(self, source: str) -> T:
        """Take out the oldest of a source, whose turn comes again when the others have had theirs."""
        line = self._lines.pop(source)
        one = line.popleft()
        if line:
            self._lines[source] = line
        return one

    def remove(self, gone: Callable[[T], bool]) -> None:
        """Take out those that are `gone`."""
        for source, line in list(self._lines.items()):
            kept = deque(one for one in line if not gone(one))
            if kept:
                self._lines[source] = kept
            else:
                del self._lines[source]

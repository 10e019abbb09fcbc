"""The prefix cache: the longest beginning that can be gone on from, however many texts are kept."""

import random
from collections.abc import Sequence

import pytest

from worker.serving.prefixes import Prefixes


class Read:
    """A past that may be cut anywhere, or nowhere as a recurrence's."""

    def __init__(self, tokens: Sequence[int], *, whole: bool) -> None:
        self.tokens = tuple(tokens)
        self.whole = whole
        self.nbytes = 10 * len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def head(self, length: int) -> "Read":
        cut = 0 if self.whole and length < len(self) else length
        return Read(self.tokens[:cut], whole=self.whole)


def cache(*, whole: bool = False) -> Prefixes:
    return Prefixes(lambda: Read((), whole=whole))


def found(prefixes: Prefixes, tokens: Sequence[int], adapter: str | None = None) -> tuple[int, ...]:
    past = prefixes.find(adapter, tokens)
    assert isinstance(past, Read)
    return past.tokens


@pytest.mark.parametrize("whole", [False, True])
def test_the_longest_beginning_of_all_is_found(whole: bool) -> None:
    draw = random.Random(5)
    prefixes = cache(whole=whole)
    # Few different tokens after a common beginning, and texts that go on from one another.
    texts = [(7,) * 14]
    for _ in range(400):
        root = draw.choice(texts)[: draw.randint(14, 40)]
        texts.append((*root, *draw.choices((1, 2), k=draw.randint(1, 6))))
        prefixes.keep(None, texts[-1], Read(texts[-1], whole=whole))
    helped = 0
    for _ in range(400):
        root = draw.choice(texts)
        wanted = (*root[: draw.randint(10, 50)], *draw.choices((1, 2, 3), k=3))
        best = 0
        for text in texts[1:]:
            pairs = zip(text, wanted[:-1], strict=False)
            shared = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
            if shared is None:
                shared = min(len(text), len(wanted) - 1)
            if shared >= 16 and (not whole or shared == len(text)):
                best = max(best, shared)
        assert found(prefixes, wanted) == wanted[:best]
        helped += best > 0
    assert 100 < helped < 400


def test_a_shorter_text_that_is_wanted_whole_is_taken_where_the_longer_can_not_be_cut() -> None:
    prefixes = cache(whole=True)
    for text in (range(20), [*range(30), 99], [*range(30), 98]):
        prefixes.keep(None, list(text), Read(list(text), whole=True))
    assert found(prefixes, range(40)) == tuple(range(20))


def test_one_token_is_left_to_read_and_a_short_beginning_is_not_worth_it() -> None:
    prefixes = cache()
    prefixes.keep(None, range(30), Read(range(30), whole=False))
    assert found(prefixes, range(30)) == tuple(range(29))
    assert found(prefixes, [*range(15), 99, 98]) == ()
    assert found(prefixes, [*range(16), 99, 98]) == tuple(range(16))


def test_adapters_have_their_own_and_are_forgotten_with_it() -> None:
    prefixes = cache()
    for adapter in (None, "a", "b"):
        prefixes.keep(adapter, range(20), Read(range(20), whole=False))
    prefixes.keep("a", range(40), Read(range(40), whole=False))
    prefixes.forget("a")
    assert prefixes.nbytes == 400
    assert found(prefixes, range(25), "a") == ()
    assert found(prefixes, range(25), "b") == found(prefixes, range(25)) == tuple(range(20))


def test_the_longest_unused_goes_first() -> None:
    prefixes = cache()
    for first in (1, 2, 3):
        text = [first] * 20
        prefixes.keep(None, text, Read(text, whole=False))
    found(prefixes, [1] * 20)  # used, as is what is kept again
    prefixes.keep(None, [2] * 20, Read([2] * 20, whole=False))
    prefixes.shrink(400)
    assert prefixes.nbytes == 400
    assert [len(found(prefixes, [first] * 25)) for first in (1, 2, 3)] == [20, 20, 0]
    prefixes.shrink(0)
    assert found(prefixes, [1] * 25) == ()

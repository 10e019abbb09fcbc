"""The queue's turns, the prefix cache's memory, tokens spelt piece by piece."""

import torch

from tests.tiny_model import build_tokenizer
from worker.engine.attention import Rule
from worker.engine.pasts import Past, Rows
from worker.serving.prefixes import Prefixes
from worker.serving.spelling import Spelling, Spoken
from worker.serving.waiting import Waiting


def take(line: Waiting[str]) -> str:
    """Take the next one of the source whose turn it is."""
    return line.take(next(line.heads())[0])


def test_sources_take_turns_and_keep_their_order() -> None:
    line: Waiting[str] = Waiting()
    for number in range(4):
        line.add("many", f"many {number}")
    line.add("few", "few 0")
    line.add("other", "other 0")
    taken = [take(line) for _ in range(3)]
    assert taken == ["many 0", "few 0", "other 0"]
    line.add("few", "few 1")
    # What had been taken comes first again among its own, and waits its source's turn as they do.
    line.put_back("many", "many 0")
    assert [take(line) for _ in range(len(line))] == ["many 0", "few 1", "many 1", "many 2", "many 3"]
    assert not line


def test_who_has_gone_is_taken_out() -> None:
    line: Waiting[int] = Waiting()
    for number in range(6):
        line.add(str(number % 2), number)
    line.remove(lambda one: one > 2)
    assert sorted(line) == [0, 1, 2]


def past(length: int) -> Past:
    """Return a past of so many tokens, each key its place."""
    return Past([torch.arange(length).view(1, length, 1)], [torch.zeros(1, length, 1)])


def test_the_longest_shared_beginning_is_found_by_adapter() -> None:
    prefixes = Prefixes(Past)
    text = list(range(100, 200))
    prefixes.keep(None, text[:40], past(40))
    prefixes.keep(None, [*text[:60], 1, 2, 3], past(63))
    prefixes.keep("ft", text, past(100))
    assert len(prefixes.find(None, text)) == 60
    assert len(prefixes.find("ft", text)) == 99  # one is left to be read
    assert len(prefixes.find("other", text)) == 0
    assert len(prefixes.find(None, [*text[:10], 5, 6])) == 0  # not worth a copy
    found = prefixes.find(None, text)
    assert found.keys[0][0, :, 0].tolist() == list(range(60))
    prefixes.forget("ft")
    assert len(prefixes.find("ft", text)) == 0


def test_the_longest_unused_goes_first() -> None:
    prefixes = Prefixes(Past)
    for start in (0, 1000, 2000):
        prefixes.keep(None, list(range(start, start + 50)), past(50))
    each = past(50).nbytes
    assert prefixes.nbytes == 3 * each
    prefixes.find(None, list(range(60)))
    prefixes.shrink(2 * each)
    assert prefixes.nbytes == 2 * each
    assert len(prefixes.find(None, list(range(60)))) == 50
    assert len(prefixes.find(None, list(range(1000, 1060)))) == 0
    prefixes.shrink(0)
    assert prefixes.nbytes == 0


def test_a_row_finds_nothing_of_who_sat_there_before() -> None:
    rows = Rows(torch.device("cpu"))

    def add(length: int, fill: float) -> None:
        rows.add(Past([torch.full((1, length, 4), fill)], [torch.full((1, length, 4), fill)]))

    for _ in range(3):
        add(9, 1.0)
    add(40, float("nan"))
    rows.keep([0, 1, 2])
    add(3, 1.0)
    new = torch.ones(1, 4, 4)
    assert torch.equal(rows.attend(0, new, new, new, Rule(1.0, None, None)), torch.ones(4, 1, 4))


def test_rows_memory_is_what_is_held_for_them() -> None:
    rows = Rows(torch.device("cpu"))
    for _ in range(16):
        rows.add(past(10))
    seat = rows.bytes_for(10, past(1).nbytes)
    assert rows.nbytes >= 16 * seat
    rows.keep(list(range(12)))
    # A quarter of the seats is free, and held; more than a third is given back, and all of it if asked.
    assert rows.nbytes >= 16 * seat
    rows.trim()
    assert rows.nbytes == 12 * seat
    rows.keep(list(range(7)))
    assert rows.nbytes == 7 * seat


def test_text_comes_piece_by_piece_and_characters_whole() -> None:
    tokenizer = build_tokenizer()
    spelling = Spelling(tokenizer)
    text = 'ab {"é": "日本", "x": 12}\n'
    tokens = tokenizer.encode(text, add_special_tokens=False)
    spoken = Spoken()
    pieces = [spelling.next(spoken, token) for token in tokens]
    assert "".join(pieces) + spelling.rest(spoken) == text
    assert "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    assert b"".join(spelling.spell(token) for token in tokens).decode() == text
    spoken = Spoken()
    cut = [spelling.next(spoken, token) for token in tokens[: pieces.index("") + 1]]
    assert cut[-1] == ""
    assert spelling.rest(spoken) == "\ufffd"

"""An answer's tokens as the pieces its reader gets."""

import pytest

from tests.tiny_model import build_tokenizer
from worker.engine.decoder import Row
from worker.serving.choices import Choice, whole
from worker.serving.reading import Reader
from worker.serving.spelling import Spelling

TOKENIZER = build_tokenizer()
EURO = TOKENIZER.encode("€")  # a token for each of its three bytes


@pytest.mark.parametrize(
    ("said", "cut", "text"),
    [
        ("a ST", 1, "a ST\ufffd"),  # may be the beginning of the stop string
        ("\n ", 1, "\n \ufffd"),  # white space that waits for what follows
        ("a ST", 3, "a ST€"),
        ("a ST", 0, "a ST"),
        ("a STOP", 1, "a "),
    ],
)
def test_an_answer_cut_within_a_character_is_told_in_order(said: str, cut: int, text: str) -> None:
    tokens = [*TOKENIZER.encode(said), *EURO[:cut]]
    row = Row(uniform=lambda _: 0.5, most=len(tokens), stops=())
    choice = Choice(0, row, Reader(stops=("STOP",), tools=(), thinking=False), Spelling(TOKENIZER))
    pieces = []
    for token in tokens:
        if not choice.ended:
            row.take(token, -1.0)
            pieces += choice.advance()
    assert whole(pieces)["message"]["content"] == text

"""What the serving bench makes of what it saw: known prompts, late first tokens, engines that differ."""

import asyncio
from dataclasses import replace

import httpx
import pytest

from tests.bench.serve import MOST_CACHED, Stream, ask, known, problems_of, unheard
from tests.bench.serve_vllm import Answer, alike, differences

LIKELIEST = {(n,): -1.0 - n for n in range(5)}
ANSWER = Answer("ab", [(97,), (98,)], [LIKELIEST, LIKELIEST])


def test_no_question_is_asked_twice() -> None:
    """Two rounds have nothing in common but what follows the numbers, which are of one length."""
    first, second = unheard(32), unheard(32)
    assert len({*first, *second}) == 64
    assert len({len(text) for text in (*first, *second)}) == 1


def test_a_prompt_that_was_known_fails() -> None:
    """The template and all but one digit may have been read before, one token more may not."""
    assert known([Stream(cached=MOST_CACHED)]) == []
    assert known([Stream(cached=0), Stream(cached=MOST_CACHED + 1)]) != []


def test_one_late_first_token_in_ten_fails() -> None:
    """The median alone would not see it."""
    quick = [Stream(first=0.5)] * 18
    assert problems_of(0.1, [*quick, *[Stream(first=1.0)] * 2]) == []
    assert len(problems_of(0.1, [*quick, *[Stream(first=4.0)] * 2])) == 1
    assert len(problems_of(0.3, quick)) == 1


def test_a_stream_without_content_fails() -> None:
    """It would count as the quickest first token of all."""
    said = 'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\ndata: [DONE]\n\n'

    async def asked() -> Stream:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text=said))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await ask(client, "m", "Hello")

    with pytest.raises(RuntimeError, match="without content"):
        asyncio.run(asked())


def test_engines_differ_in_log_probs_and_in_decided_texts() -> None:
    """A text may part only where the two likeliest tokens are all but equal."""
    other = replace(ANSWER, text="ac", tokens=[(97,), (99,)])
    close = replace(ANSWER, likeliest=[LIKELIEST, {**LIKELIEST, (1,): -1.0005}])
    assert differences(ANSWER, ANSWER) == differences(close, other) == []
    assert len(differences(ANSWER, other)) == 1
    assert len(differences(ANSWER, replace(ANSWER, text="a", tokens=[(97,)]))) == 1
    shifted = {token: value + 0.02 for token, value in LIKELIEST.items()}
    few = {(n,): -1.0 - n for n in range(2, 7)}
    for first in (shifted, few):
        assert len(differences(ANSWER, replace(ANSWER, likeliest=[first, LIKELIEST]))) == 1


def test_models_that_answer_alike_are_named() -> None:
    """Otherwise an adapter that is never applied would pass."""
    shifted = replace(ANSWER, likeliest=[{token: value + 0.02 for token, value in LIKELIEST.items()}])
    assert alike({"base": ANSWER, "tuned": shifted}) == []
    assert alike({"base": ANSWER, "tuned": ANSWER, "other": shifted}) == ["base answers as tuned does"]

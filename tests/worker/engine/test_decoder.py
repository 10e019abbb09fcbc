"""Rows that join and leave between tokens: each answers as if it were alone, by its own settings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.conftest import Load, disturb, plain_logprobs, prompts_for, settings
from tests.worker.engine.test_architectures import SHARING, built
from worker.engine.decoder import Decoder, Row, Shaping
from worker.engine.errors import NonFinite
from worker.engine.grammar import Grammar
from worker.engine.packing import shared_length
from worker.engine.pasts import Past, Pasts, Rows
from worker.engine.policy import Policy
from worker.engine.seeds import uniform
from worker.engine.types import Prompt

# From less than a shelf's room to several times that.
TEXTS = ("a", "what is this? answer me", "bb " * 30, "12 " * 80)


def row(number: int = 0, most: int = 24, **changes: Any) -> Row:
    """Return a row whose draws are named by its number."""
    return Row(uniform=partial(uniform, 11, "serve", number), most=most, stops=(), **changes)


@torch.no_grad()
def read(policy: Policy, past: Past, tokens: tuple[int, ...]) -> torch.Tensor:
    """Read on from a past and return the last state."""
    start = len(past)
    positions = torch.arange(start, start + len(tokens))
    return policy.hidden(torch.tensor(tokens), positions, past)[-1:]


class Company:
    """A decoder and the layout under it, fed by hand."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.layout = Rows(policy.device)
        self.decoder = Decoder(policy, self.layout)
        self.ended: list[Row] = []

    def join(self, prompt: Prompt, *rows: Row, pieces: int = 1000) -> None:
        past, tokens = Past(), prompt.token_ids
        for start in range(0, len(tokens), pieces):
            state = read(self.policy, past, tokens[start : start + pieces])
        self.layout.add(past, len(rows))
        self.ended += self.decoder.join(rows, state, [0] * len(rows))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.ended += self.decoder.step()

    def finish(self) -> None:
        while self.decoder.rows:
            self.step()


def alone(policy: Policy, prompt: Prompt, one: Row) -> Row:
    """Answer a prompt in no company."""
    company = Company(policy)
    company.join(prompt, one)
    company.finish()
    return one


def test_rows_that_come_and_go_answer_as_if_alone(load: Load) -> None:
    policy = load(trained=True)
    prompts = prompts_for(policy, *TEXTS)
    own = [alone(policy, prompt, row(index, 20 + 9 * index)) for index, prompt in enumerate(prompts)]
    company, rows = Company(policy), [row(index, 20 + 9 * index) for index in range(4)]
    for index in (3, 0, 2, 1):
        company.join(prompts[index], rows[index], pieces=50)
        company.step(7)
    company.finish()
    assert len(company.layout) == 0
    for one, expected, prompt in zip(rows, own, prompts, strict=True):
        assert one.tokens == expected.tokens
        plain = plain_logprobs(policy, prompt, tuple(one.tokens)).detach()
        torch.testing.assert_close(torch.tensor(one.logprobs), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHARING)
def test_windows_soft_caps_and_norms_hold_for_rows_of_any_length(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    policy = Policy.load(built(SHARING[name], tiny_model, tmp_path), config=settings())
    disturb(policy, 0.05)
    company, prompts = Company(policy), prompts_for(policy, "a", "and a longer question", "b " * 40)
    rows = [row(index) for index in range(3)]
    for one, prompt in zip(rows, prompts, strict=True):
        company.join(prompt, one, pieces=20)
        company.step(5)
    company.finish()
    for one, prompt in zip(rows, prompts, strict=True):
        plain = plain_logprobs(policy, prompt, tuple(one.tokens)).detach()
        torch.testing.assert_close(torch.tensor(one.logprobs), plain, atol=2e-4, rtol=1e-4)


def test_each_row_keeps_its_own_settings(load: Load) -> None:
    """Greedy beside drawn, cut beside whole, constrained beside free: none changes another."""
    policy = load(trained=True)
    (prompt,) = prompts_for(policy, "a")
    grammar = Grammar.from_json_schema(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        policy.tokenizer,
        vocabulary=policy.vocabulary,
    )
    makers: list[Callable[[], Row]] = [
        lambda: row(0, temperature=0.0),
        lambda: row(1),
        lambda: row(1, temperature=0.3),
        lambda: row(1, shaping=Shaping(top_p=0.2)),
        lambda: row(1, cursor=grammar.cursor()),
        lambda: row(1, shaping=Shaping(logit_bias={77: 100.0})),
        lambda: row(1, 5),
    ]
    together = Company(policy)
    rows = [make() for make in makers]
    for one in rows:
        one.take_forced()
        one.read = len(one.tokens)
        together.join(Prompt(0, (*prompt.token_ids, *one.tokens)), one)
    together.finish()
    assert len({tuple(one.tokens) for one in rows}) == len(rows)
    for make, one in zip(makers, rows, strict=True):
        if one.cursor is None:
            assert alone(policy, prompt, make()).tokens == one.tokens
    assert policy.decode(rows[4].tokens).startswith('{"a": ')
    assert set(rows[5].tokens) == {77}
    assert rows[6].tokens == rows[1].tokens[:5]
    assert rows[6].finish == "length"


def test_penalties_are_taken_from_what_was_said(load: Load) -> None:
    policy = load(trained=True)
    (prompt,) = prompts_for(policy, "a")
    plain = alone(policy, prompt, row(most=40, temperature=0.0))
    assert len(set(plain.tokens)) < 40
    never_twice = Shaping(presence_penalty=1e4)
    assert len(set(alone(policy, prompt, row(most=40, temperature=0.0, shaping=never_twice)).tokens)) == 40
    # After n times a token is n penalties down, so no token gets far ahead of the others.
    evenly = Shaping(frequency_penalty=1e4)
    tokens = alone(policy, prompt, row(most=300, temperature=0.0, shaping=evenly)).tokens
    counts = torch.bincount(torch.tensor(tokens), minlength=policy.vocabulary)
    assert counts.max() - counts.min() <= 1


def test_told_logprobs_are_the_model_s_own_whatever_bends_the_draw(load: Load) -> None:
    policy = load(trained=True)
    (prompt,) = prompts_for(policy, "what now")
    bent = Shaping(top_p=0.5, frequency_penalty=0.5, logit_bias={70: 2.0})
    one = alone(policy, prompt, row(temperature=0.7, shaping=bent, alternatives=3))
    plain = plain_logprobs(policy, prompt, tuple(one.tokens)).detach()
    torch.testing.assert_close(torch.tensor(one.logprobs), plain, atol=1e-4, rtol=0)
    for token, logprob, likeliest in zip(one.tokens, one.logprobs, one.likeliest, strict=True):
        values = [value for _, value in likeliest]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert values[0] >= logprob
        assert dict(likeliest).get(token, logprob) == pytest.approx(logprob, abs=1e-6)


def test_a_row_that_left_leaves_the_others_as_they_were_and_may_come_back(load: Load) -> None:
    policy = load(trained=True)
    first, second = prompts_for(policy, "a", "b " * 50)
    own = [alone(policy, first, row(0, 40)), alone(policy, second, row(1, 40))]
    company, rows = Company(policy), [row(0, 40), row(1, 40)]
    company.join(first, rows[0])
    company.join(second, rows[1])
    company.step(10)
    company.decoder.leave([rows[0]])
    company.step(5)
    past, text = Past(), (*first.token_ids, *rows[0].tokens)
    read(policy, past, text[:-1])
    company.layout.add(past)
    company.decoder.rejoin([rows[0]])
    company.finish()
    assert [one.tokens for one in rows] == [one.tokens for one in own]


def test_a_past_that_others_go_on_from_stays_as_it_is(load: Load) -> None:
    policy = load(trained=True)
    first, second = prompts_for(policy, "a and more", "a but less")
    cached = Past()
    read(policy, cached, first.token_ids)
    own = [alone(policy, prompt, row()) for prompt in (first, second)]
    shared = shared_length([first.token_ids, second.token_ids])
    for prompt, expected in zip((second, first), own[::-1], strict=True):
        past = cached.head(shared)
        state = read(policy, past, prompt.token_ids[shared:])
        company, one = Company(policy), row()
        company.layout.add(past)
        company.decoder.join([one], state, [0])
        company.finish()
        assert one.tokens == expected.tokens
    assert len(cached) == len(first.token_ids)


def test_a_row_without_a_distribution_is_not_taken_in(load: Load) -> None:
    policy = load()
    prompts = prompts_for(policy, "a", "b")
    company = Company(policy)
    company.join(prompts[0], row())
    with torch.no_grad():
        for parameter in policy.adapter.values():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFinite):
        company.join(prompts[1], row())
    assert len(company.decoder.rows) == 1


def test_texts_read_in_one_forward_are_read_as_if_alone(load: Load) -> None:
    policy = load(trained=True)
    prompts = prompts_for(policy, "a", "longer than the other by far")
    begun = [Past(), Past()]
    read(policy, begun[1], prompts[1].token_ids[:7])
    pieces = [prompts[0].token_ids, prompts[1].token_ids[7:]]
    tokens = torch.tensor([token for piece in pieces for token in piece])
    places = torch.cat([torch.arange(len(pieces[0])), torch.arange(7, 7 + len(pieces[1]))])
    with torch.no_grad():
        states = policy.hidden(tokens, places, Pasts(begun, [len(piece) for piece in pieces]))
    for prompt, past, last in zip(prompts, begun, (len(pieces[0]) - 1, len(tokens) - 1), strict=True):
        own = Past()
        torch.testing.assert_close(
            states[last], read(policy, own, prompt.token_ids)[-1], atol=1e-5, rtol=1e-4
        )
        for one, other in zip((*past.keys, *past.values), (*own.keys, *own.values), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

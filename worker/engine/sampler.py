"""Answers from the model: prompts read once, all rows decoded together, finished rows dropped.

What the model computes with (base, adapter, merged) is the caller's choice, made around the call. Used by the
training step, by `evaluate.py`, and later by serving.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from worker.engine.attention import PackedLayout
from worker.engine.decoding import DecodeLayout
from worker.engine.drawing import draw
from worker.engine.grammar import Bits, Cursor, Grammar, disallowed
from worker.engine.packing import Tree, common_prefix, pack
from worker.engine.policy import Policy
from worker.engine.seeds import uniform
from worker.engine.types import OnAnswer, Prompt, Rollout

_MOST_ROWS = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn: temperature 0 is greedy; split, step and seed name the draws."""

    split: str
    step: int
    samples: int
    max_tokens: int
    temperature: float
    seed: int


@dataclass(slots=True)
class _Row:
    """An answer on its way: `tokens` are decided; those of them the model has not read yet were forced."""

    prompt: int
    sample: int
    cursor: Cursor | None
    options: Bits | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None

    def take(self, token: int, logprob: float, stops: Sequence[int], most: int) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in stops:
            self.finish = "stop"
        elif len(self.tokens) == most:
            self.finish = "length"
        if self.cursor is not None:
            self.cursor.take(token)

    def take_forced(self, stops: Sequence[int], most: int) -> None:
        """Take every token that is forced from here on, and remember the options of the first that is not."""
        while self.cursor is not None and self.finish is None:
            options = self.cursor.options()
            if not isinstance(options, int):
                self.options = options
                return
            self.take(options, 0.0, stops, most)


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    grammar: Grammar | None = None,
    on_answer: OnAnswer | None = None,
) -> Iterator[list[Rollout]]:
    """Yield the answers wave by wave, `samples` for each prompt, in the order of the prompts.

    `on_answer` hears of each as soon as it ends, which is before its wave does.

    Raises: NonFinite when the model's logits are not finite.
    """
    for wave in waves([len(prompt.token_ids) for prompt in prompts], sampling, policy.wave_tokens):
        yield _sample_wave(policy, prompts[wave], sampling, grammar, on_answer)


def waves(lengths: Sequence[int], sampling: Sampling, budget: int) -> list[slice]:
    """Cut prompts into waves whose keys and values fit the budget at full answer length.

    Each wave has at least one prompt, even one that exceeds the budget alone.
    """
    if not lengths:
        return []
    cuts = [0]
    spent = 0
    for index, length in enumerate(lengths):
        cost = length + sampling.samples * sampling.max_tokens
        rows = (index - cuts[-1] + 1) * sampling.samples
        if index > cuts[-1] and (spent + cost > budget or rows > _MOST_ROWS):
            cuts.append(index)
            spent = 0
        spent += cost
    return [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(lengths)], strict=True)]


@torch.no_grad()
def _sample_wave(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    grammar: Grammar | None,
    on_answer: OnAnswer | None,
) -> list[Rollout]:
    answers: dict[tuple[int, int], Rollout] = {}

    def end(row: _Row) -> None:
        rollout = answers[row.prompt, row.sample] = _rollout(policy, prompts[row.prompt], row, sampling)
        if on_answer is not None:
            on_answer(rollout)

    rows = [
        _Row(prompt, number, grammar.cursor() if grammar else None)
        for prompt in range(len(prompts))
        for number in range(sampling.samples)
    ]
    for row in rows:
        row.take_forced(policy.stop_ids, sampling.max_tokens)
        if row.finish is not None:
            end(row)
    active = [row for row in rows if row.finish is None]
    if active:
        _decode(policy, prompts, active, sampling, end)
    return [answers[row.prompt, row.sample] for row in rows]


def _decode(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: list[_Row],
    sampling: Sampling,
    end: Callable[[_Row], None],
) -> None:
    # Forced tokens that open every answer are the same for all, so they are read with the prompt, once.
    opening = tuple(rows[0].tokens)
    texts = [(*prompt.token_ids, *opening) for prompt in prompts]
    shared = common_prefix(texts)
    packed = pack(texts[0][:shared], [Tree(text[shared:]) for text in texts], policy.device)
    prefill = PackedLayout(packed, remember=True)
    states = policy.hidden(packed.token_ids, packed.positions, prefill)
    ends = torch.tensor([span.stop - 1 for span in packed.spans], device=policy.device)
    source = [row.prompt for row in rows]
    _choose(policy, prompts, rows, states[ends], source, sampling)
    layout = DecodeLayout(prefill, source)
    del prefill, states
    fed = len(opening)
    while True:
        staying = [index for index, row in enumerate(rows) if row.finish is None]
        for row in rows:
            if row.finish is not None:
                end(row)
        if not staying:
            return
        if len(staying) < len(rows):
            layout.keep(staying)
            rows = [rows[index] for index in staying]
        tokens = torch.tensor([row.tokens[fed] for row in rows], device=policy.device)
        states = policy.hidden(tokens, layout.positions(), layout)
        layout.advance()
        fed += 1
        waiting = [index for index, row in enumerate(rows) if len(row.tokens) == fed]
        _choose(policy, prompts, [rows[index] for index in waiting], states, waiting, sampling)


def _choose(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: Sequence[_Row],
    states: torch.Tensor,
    source: Sequence[int],
    sampling: Sampling,
) -> None:
    """Give each row its next token from the state at its `source`, and what the grammar forces after it."""
    if not rows:
        return
    # Rows of one prompt start from one state: its logits are computed once.
    used = sorted(set(source))
    place = {state: index for index, state in enumerate(used)}
    logits = policy.logits(states[torch.tensor(used, device=states.device)])
    logits = logits[torch.tensor([place[state] for state in source], device=states.device)]
    masks = [row.options for row in rows if row.options is not None]
    if masks:
        logits.masked_fill_(disallowed(masks, logits.shape[1]).to(logits.device), float("-inf"))
    purpose = (sampling.split, sampling.step)
    uniforms = [
        uniform(sampling.seed, *purpose, prompts[row.prompt].item_index, row.sample, len(row.tokens))
        for row in rows
    ]
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    tokens, logprobs = draw(logits, numbers, sampling.temperature)
    for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
        row.take(token, logprob, policy.stop_ids, sampling.max_tokens)
        row.take_forced(policy.stop_ids, sampling.max_tokens)


def _rollout(policy: Policy, prompt: Prompt, row: _Row, sampling: Sampling) -> Rollout:
    stopped = row.finish == "stop"
    return Rollout(
        split=sampling.split,
        step=sampling.step,
        item_index=prompt.item_index,
        sample_index=row.sample,
        prompt_tokens=len(prompt.token_ids),
        token_ids=tuple(row.tokens),
        logprobs=tuple(row.logprobs),
        text=policy.decode(row.tokens[:-1] if stopped else row.tokens),
        finish_reason="stop" if stopped else "length",
    )

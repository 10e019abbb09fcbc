"""Answers for training and evaluation: prompts read once, all rows of a wave decoded together and in step.

What the model computes with (base, adapter, merged) is the caller's choice, made around the call. The decode
loop is `decoder.py`'s, which serving drives too. Used by the training step and by `evaluate.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from worker.engine.attention import PackedLayout
from worker.engine.decoder import Decoder, Row
from worker.engine.errors import OutOfMemory, ran_out_of_memory
from worker.engine.grammar import Grammar
from worker.engine.packing import Tree, common_prefix, pack
from worker.engine.policy import Policy
from worker.engine.seeds import uniform
from worker.engine.tape import Record
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


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    grammar: Grammar | None = None,
    on_answer: OnAnswer | None = None,
) -> Iterator[list[Rollout]]:
    """Yield the answers wave by wave, `samples` for each prompt, in the order of the prompts.

    `on_answer` hears of each as soon as it ends, which is before its wave does.

    When memory runs out a wave is begun again, first without the tape, then each time with half the budget,
    which stays halved: `on_answer` may then hear of an answer twice, and the last counts.
    Raises: NonFinite when the model's logits are not finite; OutOfMemory when one prompt is too much.
    """
    copies = 1 if policy.shares_prompts else sampling.samples
    lengths = [copies * len(prompt.token_ids) for prompt in prompts]
    policy.expect(sum(lengths) + len(prompts) * sampling.samples * sampling.max_tokens)
    done = 0
    while done < len(prompts):
        wave = waves(lengths[done:], sampling, policy.wave_tokens)[0]
        try:
            answers = _sample_wave(policy, prompts[done : done + wave.stop], sampling, grammar, on_answer)
            if policy.tape is not None and done + wave.stop == len(prompts):
                policy.tape.seal(policy.head)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            if policy.tape is not None and not policy.tape.spilled:
                # It has some layers' part of the forward that failed, and training can do without it.
                policy.tape.give_up(ran_out=True)
                continue
            if wave.stop == 1:
                raise OutOfMemory(
                    "Answering one prompt at a time does not fit into memory: use a smaller model, fewer "
                    "samples_per_prompt, shorter prompts, or a lower max_completion_tokens."
                ) from error
            if policy.tape is not None:
                # The wave was too much without it too: beside smaller ones the next tape may find its place.
                policy.tape.give_up()
            policy.wave_tokens = max(1, policy.wave_tokens // 2)
            continue
        done += wave.stop
        yield answers


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
    rows = [
        _row(policy, prompts, prompt, number, sampling, grammar)
        for prompt in range(len(prompts))
        for number in range(sampling.samples)
    ]
    for ended in _decode(policy, prompts, rows):
        for row in ended:
            prompt, number = row.owner
            if policy.tape is not None and row.lines:
                policy.tape.rows[prompts[prompt].item_index, number] = Record(row.lines, row.draws)
            rollout = answers[row.owner] = _rollout(policy, prompts[prompt], number, row, sampling)
            if on_answer is not None:
                on_answer(rollout)
    return [answers[row.owner] for row in rows]


def _row(
    policy: Policy,
    prompts: Sequence[Prompt],
    prompt: int,
    number: int,
    sampling: Sampling,
    grammar: Grammar | None,
) -> Row:
    name = (sampling.split, sampling.step, prompts[prompt].item_index, number)
    return Row(
        uniform=partial(uniform, sampling.seed, *name),
        most=sampling.max_tokens,
        stops=policy.stop_ids,
        temperature=sampling.temperature,
        cursor=grammar.cursor() if grammar else None,
        owner=(prompt, number),
    )


def _decode(policy: Policy, prompts: Sequence[Prompt], rows: list[Row]) -> Iterator[list[Row]]:
    """Yield the rows as they end."""
    for row in rows:
        row.take_forced()
    yield [row for row in rows if row.finish is not None]
    rows = [row for row in rows if row.finish is None]
    if not rows:
        return
    # Forced tokens that open every answer are the same for all, so they are read with the prompt, once.
    opening = tuple(rows[0].tokens)
    for row in rows:
        row.read = len(opening)
    texts = [(*prompt.token_ids, *opening) for prompt in prompts]
    shared = common_prefix(texts)
    packed = pack(texts[0][:shared], [Tree(text[shared:]) for text in texts], policy.device)
    prefill = PackedLayout(packed, remember=True)
    first = policy.next_line
    states = policy.hidden(packed.token_ids, packed.positions, prefill)
    if first is not None:
        for row in rows:
            span = packed.spans[row.owner[0]]
            row.lines = [first + place for place in (*range(shared), *range(span.start, span.stop))]
    ends = torch.tensor([span.stop - 1 for span in packed.spans], device=policy.device)
    source = [row.owner[0] for row in rows]
    decoder = Decoder(policy, policy.rows(prefill, source))
    ended = decoder.join(rows, states[ends], source)
    del prefill, states
    yield ended
    while decoder.rows:
        yield decoder.step()


def _rollout(policy: Policy, prompt: Prompt, number: int, row: Row, sampling: Sampling) -> Rollout:
    stopped = row.finish == "stop"
    return Rollout(
        split=sampling.split,
        step=sampling.step,
        item_index=prompt.item_index,
        sample_index=number,
        prompt_tokens=len(prompt.token_ids),
        token_ids=tuple(row.tokens),
        logprobs=tuple(row.logprobs),
        text=policy.decode(row.tokens[:-1] if stopped else row.tokens),
        finish_reason="stop" if stopped else "length",
    )

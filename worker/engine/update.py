"""From graded groups to a gradient: pack, forward, loss, backward, micro-batch by micro-batch.

Each prompt's forward and backward run once for all its answers; their gradients meet in the shared tokens.
Called once a step by `reinforcement.py`; applying the gradient is `optimizer.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout
from worker.engine.batches import Answer, Group, micro_batches
from worker.engine.config import TrainingConfig
from worker.engine.errors import OutOfMemory, ran_out_of_memory
from worker.engine.grammar import Bits, Grammar, replay
from worker.engine.logprobs import recorded_logprobs, token_logprobs
from worker.engine.losses import token_loss
from worker.engine.packing import Packed, Tree, common_prefix, pack, shared_length
from worker.engine.policy import Policy
from worker.engine.tape import Tape


@dataclass(slots=True)
class Gradient:
    """Figures of a gradient now lying in the adapter's `.grad`: means over all answer tokens of the step."""

    loss: float = 0.0
    kl: float = 0.0
    sampler_trainer_kl: float = 0.0
    clip_fraction: float = 0.0
    entropy: float = 0.0


@dataclass(frozen=True, slots=True)
class _Scored:
    """The answer tokens of a micro-batch that had a choice, in one row."""

    packed: Packed
    states: Tensor  # [T] where in the packed row each token is predicted
    targets: Tensor  # [T]
    old_logprobs: Tensor  # [T]
    advantages: Tensor  # [T]
    masks: list[Bits | None]
    lines: Tensor | None  # [N] where the tape holds each token of the packed row
    draws: Tensor  # [T] where it holds each draw, if it does


def compute_gradient(
    policy: Policy,
    groups: Sequence[Group],
    config: TrainingConfig,
    grammar: Grammar | None,
    budget: int,
    tape: Tape | None = None,
) -> tuple[Gradient, int]:
    """Fill the adapter's `.grad` with the step's gradient; return its figures and the budget that fitted.

    Answers that the tape holds are not computed again.

    When memory runs out the whole gradient is started again: without the tape, which is given up, then each
    time with half the micro-batch, the same sum in smaller parts.
    Raises: OutOfMemory when one answer at a time is still too much.
    """
    if tape is not None and tape.spilled:
        tape = None
    while True:
        batches = micro_batches(groups, budget)
        try:
            return _accumulate(policy, batches, config, grammar, tape), budget
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        given_up, tape = tape, None
        if given_up is not None:
            given_up.give_up(ran_out=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if given_up is not None:
            continue
        if all(len(batch) == 1 and len(batch[0].answers) == 1 for batch in batches):
            raise OutOfMemory(
                "Training one answer at a time does not fit into memory: use a smaller model, shorter "
                "prompts, or a lower max_completion_tokens."
            )
        budget = max(1, budget // 2)


def _accumulate(
    policy: Policy,
    batches: Sequence[Sequence[Group]],
    config: TrainingConfig,
    grammar: Grammar | None,
    tape: Tape | None,
) -> Gradient:
    for parameter in policy.adapter.values():
        parameter.grad = None
    answers = [answer for batch in batches for group in batch for answer in group.answers]
    # Forced tokens count too: an answer's weight is its length, however much of it the grammar wrote.
    tokens = sum(len(answer.token_ids) for answer in answers)
    total = Gradient()
    for batch in batches:
        _micro_batch(policy, _lay_out(policy, batch, grammar), config, tokens, total, tape)
    return total


def _micro_batch(
    policy: Policy,
    scored: _Scored,
    config: TrainingConfig,
    tokens: int,
    total: Gradient,
    tape: Tape | None,
) -> None:
    packed = scored.packed

    def logprobs() -> tuple[Tensor, Tensor]:
        states = policy.hidden(packed.token_ids, packed.positions, PackedLayout(packed))
        return token_logprobs(
            policy.logits,
            _picked(states, scored.states),
            scored.targets,
            temperature=config.temperature,
            masks=scored.masks,
        )

    base = None
    if config.kl_beta > 0:
        with torch.no_grad(), policy.base():
            base, _ = logprobs()
    if tape is not None and scored.lines is not None:
        states = policy.replay(packed, PackedLayout(packed), tape, scored.lines)
        current = recorded_logprobs(
            _picked(states, scored.states),
            scored.old_logprobs,
            lambda: tape.slopes(scored.draws, scored.targets, policy.head),
            temperature=config.temperature,
        )
        entropy = tape.entropies(scored.draws)
    else:
        current, entropy = logprobs()
    result = token_loss(
        current,
        scored.old_logprobs,
        scored.advantages,
        base,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_beta=config.kl_beta,
        importance_cap=config.importance_cap,
    )
    (result.loss / tokens).backward()  # type: ignore[no-untyped-call]
    total.loss += result.loss.item() / tokens
    total.kl += result.kl.item() / tokens
    total.sampler_trainer_kl += result.sampler_trainer_kl.item() / tokens
    total.clip_fraction += result.clipped.item() / tokens
    total.entropy += entropy.sum().item() / tokens


def _lay_out(policy: Policy, groups: Sequence[Group], grammar: Grammar | None) -> _Scored:
    common = common_prefix([group.prompt for group in groups])
    chosen = [[_choices(answer, grammar) for answer in group.answers] for group in groups]
    trees, forks = [], []
    lines: list[int] = []
    for group, choices in zip(groups, chosen, strict=True):
        # What follows the last choice predicts nothing that teaches, so it is never read.
        inputs = [
            tuple(answer.token_ids[: max(places, default=0)])
            for answer, places in zip(group.answers, choices, strict=True)
        ]
        fork = shared_length(inputs)
        trunk = (*group.prompt[common:], *inputs[0][:fork])
        trees.append(Tree(trunk, tuple(tokens[fork:] for tokens in inputs)))
        forks.append(len(group.prompt) + fork)
        lines += _lines(group, [len(tokens) for tokens in inputs], common if lines else 0, forks[-1])
    packed = pack(groups[0].prompt[:common], trees, policy.device)
    states: list[int] = []
    targets: list[int] = []
    old: list[float] = []
    advantages: list[float] = []
    masks: list[Bits | None] = []
    draws: list[int] = []
    for group, choices, span, fork in zip(groups, chosen, packed.spans, forks, strict=True):
        for answer, places, branch in zip(group.answers, choices, span.branch_starts, strict=True):
            for place, mask in places.items():
                before = len(group.prompt) + place - 1
                states.append(span.start + before - common if before < fork else branch + before - fork)
                targets.append(answer.token_ids[place])
                old.append(answer.old_logprobs[place])
                advantages.append(answer.advantage)
                masks.append(mask)
                draws.append(answer.record.draws[place] if answer.record is not None else -1)
    device = policy.device
    return _Scored(
        packed,
        torch.tensor(states, dtype=torch.long, device=device),
        torch.tensor(targets, dtype=torch.long, device=device),
        torch.tensor(old, device=device),
        torch.tensor(advantages, device=device),
        masks,
        torch.tensor(lines, device=device) if len(lines) == len(packed.token_ids) else None,
        torch.tensor(draws, dtype=torch.long, device=device),
    )


def _choices(answer: Answer, grammar: Grammar | None) -> dict[int, Bits | None]:
    """Return the places of an answer that were not forced, with the bits each was drawn under."""
    if grammar is None:
        return dict.fromkeys(range(len(answer.token_ids)))
    replayed = enumerate(replay(grammar, answer.token_ids))
    return {place: bits for place, bits in replayed if bits is not None}


def _lines(group: Group, read: Sequence[int], start: int, fork: int) -> list[int]:
    """Return the tape's lines of a tree's tokens from `start` on: its trunk to the fork, then each branch."""
    known = [answer.record.lines for answer in group.answers if answer.record is not None]
    if len(known) < len(group.answers):
        return []
    lines = list(known[0][start:fork])
    for own, length in zip(known, read, strict=True):
        lines += own[fork : len(group.prompt) + length]
    return lines


def _picked(states: Tensor, places: Tensor) -> Tensor:
    """Return the states at these places, several times where answers begin at one. Shapes: [N, H] -> [T, H].

    Not `states[places]`: on a CPU its backward adds what meets in one place in whatever order threads come.
    """
    return states.index_select(0, places)

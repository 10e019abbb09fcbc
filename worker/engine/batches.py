"""Groups with signal, cut into micro-batches by a budget of packed tokens.

No padding, so a micro-batch costs what its tokens cost: shared prefix once, each prompt once, each answer
once. Called by `update.py`; the cut changes memory and rounding, never the meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from worker.engine.packing import Tokens, common_prefix
from worker.engine.tape import Record


@dataclass(frozen=True, slots=True)
class Answer:
    """What the update needs to know of a rollout; `record` says where a tape holds it."""

    token_ids: Tokens
    old_logprobs: Sequence[float]
    advantage: float
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its answers that teach."""

    prompt: Tokens
    answers: tuple[Answer, ...]


def micro_batches(groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """Fill micro-batches in order; a group that is too large alone is split between its answers.

    A single answer may exceed the budget: there is nothing left to split.
    """
    shared = common_prefix([group.prompt for group in groups])
    batches: list[list[Group]] = []
    spent = budget
    for piece in (piece for group in groups for piece in _split(group, budget)):
        cost = _tokens(piece)
        if batches and spent + cost - shared <= budget:
            batches[-1].append(piece)
            spent += cost - shared
        else:
            batches.append([piece])
            spent = cost
    return batches


def _split(group: Group, budget: int) -> list[Group]:
    pieces: list[list[Answer]] = [[]]
    spent = len(group.prompt)
    for answer in group.answers:
        if pieces[-1] and spent + len(answer.token_ids) > budget:
            pieces.append([])
            spent = len(group.prompt)
        pieces[-1].append(answer)
        spent += len(answer.token_ids)
    return [replace(group, answers=tuple(piece)) for piece in pieces]


def _tokens(group: Group) -> int:
    return len(group.prompt) + sum(len(answer.token_ids) for answer in group.answers)

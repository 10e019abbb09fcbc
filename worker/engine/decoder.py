"""The one decode loop: rows answered together, a token each a step, joining and leaving between tokens.

Each row carries its own settings. Where the keys and values lie is the layout's: rows in step over shared
prompts (`decoding.py`, training) or rows of any length (`pasts.py`, serving). What the model computes with
(base, adapter, merged, mixed) is the caller's choice, made around the call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from worker.engine.attention import RowLayout
from worker.engine.drawing import draw_telling
from worker.engine.grammar import Bits, Cursor, disallowed
from worker.engine.policy import Policy


@dataclass(frozen=True, slots=True)
class Shaping:
    """What bends a row's distribution before it is drawn from, in OpenAI's words.

    Penalties count the tokens of the answer so far, not those of the prompt.
    """

    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """An answer on its way.

    `tokens` are decided; the model has read the first `read` of them, and what it has not was forced.
    `uniform` gives the number that draws the token at a position. With `alternatives` a row tells of so many
    likeliest tokens beside each of its own, and its log-probs are the model's own, unbent; without, they are
    those of the distribution drawn from.
    """

    uniform: Callable[[int], float]
    most: int
    stops: Sequence[int]
    temperature: float = 1.0
    cursor: Cursor | None = None
    shaping: Shaping | None = None
    alternatives: int | None = None
    owner: Any = None
    options: Bits | None = None
    read: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    # Where a tape holds what was read, the prompt first, and each draw, by its place in the answer.
    lines: list[int] = field(default_factory=list)
    draws: dict[int, int] = field(default_factory=dict)
    finish: Literal["stop", "length"] | None = None

    def take(self, token: int, logprob: float) -> None:
        """Decide on a token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stops:
            self.finish = "stop"
        elif len(self.tokens) == self.most:
            self.finish = "length"
        if self.cursor is not None:
            self.cursor.take(token)

    def take_forced(self) -> None:
        """Take every token that is forced from here on, and remember the options of the first that is not."""
        while self.cursor is not None and self.finish is None:
            options = self.cursor.options()
            if not isinstance(options, int):
                self.options = options
                return
            if self.alternatives is not None:
                self.likeliest.append([(options, 0.0)])
            self.take(options, 0.0)


class Decoder:
    """The rows of one layout. A row that ends is dropped at once and handed back."""

    def __init__(self, policy: Policy, layout: RowLayout) -> None:
        self._policy = policy
        self._layout = layout
        self.rows: list[Row] = []

    def join(self, rows: Sequence[Row], states: Tensor, source: Sequence[int]) -> list[Row]:
        """Take in rows that the layout holds already, behind those it held before; return those that ended.

        Each gets its next token from the state at its `source`: the last of what the model has read of it.
        Raises: NonFinite when a row has no finite distribution; the rows are not taken in then.
        """
        self._choose(rows, states, source)
        self.rows += rows
        return self._drop([row for row in rows if row.finish is not None])

    def rejoin(self, rows: Sequence[Row]) -> None:
        """Take in rows that left before, whose next token is decided already."""
        self.rows += rows

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Let every row read a token and, where it has read all, decide on the next; return those that ended.

        Raises: NonFinite when a row has no finite distribution.
        """
        rows, device = self.rows, self._policy.device
        tokens = torch.tensor([row.tokens[row.read] for row in rows], device=device)
        first = self._policy.next_line
        states = self._policy.decode_rows(tokens, self._layout.positions(), self._layout)
        self._layout.advance()
        for row in rows:
            row.read += 1
        if first is not None:
            for index, row in enumerate(rows):
                row.lines.append(first + index)
        waiting = [index for index, row in enumerate(rows) if len(row.tokens) == row.read]
        self._choose([rows[index] for index in waiting], states, waiting)
        return self._drop([row for row in rows if row.finish is not None])

    def leave(self, rows: Sequence[Row]) -> None:
        """Drop rows that nobody waits for any more."""
        self._drop(rows)

    def _drop(self, rows: Sequence[Row]) -> list[Row]:
        if rows:
            gone = {id(row) for row in rows}
            staying = [index for index, row in enumerate(self.rows) if id(row) not in gone]
            self._layout.keep(staying)
            self.rows = [self.rows[index] for index in staying]
        return list(rows)

    @torch.no_grad()
    def _choose(self, rows: Sequence[Row], states: Tensor, source: Sequence[int]) -> None:
        """Give each row its next token from the state at its `source`, and what is forced after it."""
        if not rows:
            return
        # Rows of one prompt start from one state: its logits are computed once.
        used = sorted(set(source))
        place = {state: index for index, state in enumerate(used)}
        logits = self._policy.logits(states[torch.tensor(used, device=states.device)])
        if used != list(source):  # else the copy would be the same
            logits = logits[torch.tensor([place[state] for state in source], device=states.device)]
        told = {
            index: logits[index].log_softmax(-1)
            for index, row in enumerate(rows)
            if row.alternatives is not None
        }
        for index, row in enumerate(rows):
            if row.shaping is not None:
                _bend(logits[index], row.tokens, row.shaping)
        constrained = [index for index, row in enumerate(rows) if row.options is not None]
        if constrained:
            _mask(logits, rows, constrained)
        uniforms = [row.uniform(len(row.tokens)) for row in rows]
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        tape = self._policy.tape if self._policy.next_line is not None else None
        tokens, logprobs, spread = draw_telling(
            logits, numbers, _temperature(rows, logits.device), _top_p(rows), spread=tape is not None
        )
        if tape is not None and spread is not None:
            first = tape.record_draws(spread, self._policy.head)
            for index, row in enumerate(rows):
                row.draws[len(row.tokens)] = first + index
        for index, (row, token, logprob) in enumerate(
            zip(rows, tokens.tolist(), logprobs.tolist(), strict=True)
        ):
            if row.alternatives is not None:
                own = told[index]
                values, ids = own.topk(min(row.alternatives, len(own)))
                row.likeliest.append(list(zip(ids.tolist(), values.tolist(), strict=True)))
                logprob = float(own[token])
            row.take(token, logprob)
            row.take_forced()


def _bend(logits: Tensor, tokens: Sequence[int], shaping: Shaping) -> None:
    """Add biases and subtract penalties in place. Shapes: logits [V]."""
    if shaping.logit_bias:
        ids = torch.tensor(list(shaping.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(shaping.logit_bias.values()), device=logits.device)
    if tokens and (shaping.frequency_penalty or shaping.presence_penalty):
        said, counts = torch.unique(torch.tensor(tokens, device=logits.device), return_counts=True)
        logits[said] -= counts * shaping.frequency_penalty + shaping.presence_penalty


def _mask(logits: Tensor, rows: Sequence[Row], constrained: Sequence[int]) -> None:
    """Forbid in place what the grammars of the constrained rows do not allow."""
    masks = [row.options for row in rows if row.options is not None]
    forbidden = disallowed(masks, logits.shape[1]).to(logits.device)
    if len(constrained) == len(rows):
        logits.masked_fill_(forbidden, float("-inf"))
        return
    for index, one in zip(constrained, forbidden, strict=True):
        logits[index].masked_fill_(one, float("-inf"))


def _temperature(rows: Sequence[Row], device: torch.device) -> float | Tensor:
    values = [row.temperature for row in rows]
    return values[0] if len(set(values)) == 1 else torch.tensor(values, device=device)


def _top_p(rows: Sequence[Row]) -> dict[int, float]:
    return {
        index: row.shaping.top_p
        for index, row in enumerate(rows)
        if row.shaping is not None and row.shaping.top_p < 1
    }

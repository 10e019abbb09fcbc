"""The requests of one base model: read, answered together, and told piece by piece.

A turn is a piece of what waits to be read and one token for every row. Memory for keys and values is bounded:
when it runs short, kept prefixes go first, then the youngest row waits and is read again later. Driven by
`house.py` on the thread that computes.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.core.errors import AppError, Unavailable
from worker.engine.decoder import Decoder, Row
from worker.engine.errors import EngineError, NonFinite
from worker.engine.packing import shared_length
from worker.engine.pasts import TextPast
from worker.engine.policy import Policy
from worker.serving.choices import Choice
from worker.serving.prefixes import Prefixes
from worker.serving.ticket import Ticket
from worker.serving.waiting import Waiting

# So many tokens of waiting prompts are read at once while others wait for their next token.
_PIECE = 256
# Prompts that share so much more than is kept are not read side by side: the second goes on from the first.
_SHARED = 16
# Room a row should find before it is let in, in tokens.
_AHEAD = 64


@dataclass(slots=True)
class _Entry:
    """A text being read: a request's prompt for its first choices, or one row that had to make room."""

    ticket: Ticket
    tokens: tuple[int, ...]
    past: TextPast
    returning: Choice | None = None


class Batch:
    """The rows of one base model and those that wait to join them."""

    def __init__(self, policy: Policy, *, most_rows: int) -> None:
        self._policy = policy
        self._most_rows = most_rows
        self._layout = policy.new_rows()
        self._decoder = Decoder(policy, self._layout)
        self._prefixes = Prefixes(policy.new_past)
        self._waiting: Waiting[Ticket] = Waiting()
        self._returning: deque[tuple[Ticket, Choice]] = deque()
        self._reading: list[_Entry] = []
        self._choices: dict[int, tuple[Ticket, Choice]] = {}  # by the identity of the row
        self._token_bytes = 0
        self.room = 0

    @property
    def nbytes(self) -> int:
        """The memory of all keys and values."""
        reading = sum(entry.past.nbytes for entry in self._reading)
        return self._layout.nbytes + self._prefixes.nbytes + reading

    @property
    def rows(self) -> int:
        """How many answers are under way."""
        return len(self._decoder.rows) + len(self._returning) + len(self._reading)

    @property
    def waiting(self) -> int:
        """How many requests wait for their first token."""
        return len(self._waiting)

    @property
    def adapters(self) -> set[str]:
        """The adapters that requests under way need."""
        tickets = [ticket for ticket, _ in (*self._choices.values(), *self._returning)]
        tickets += [entry.ticket for entry in self._reading]
        return {ticket.adapter for ticket in (*tickets, *self._waiting) if ticket.adapter is not None}

    def add(self, ticket: Ticket) -> None:
        """Let a request wait for its turn."""
        self._waiting.add(ticket.source, ticket)

    def forget(self, adapter: str) -> None:
        """Forget what was read through an adapter that goes."""
        self._prefixes.forget(adapter)

    def fail(self, error: AppError) -> None:
        """Tell every request that it won't be answered."""
        tickets = {id(ticket): ticket for ticket, _ in (*self._choices.values(), *self._returning)}
        tickets |= {id(ticket): ticket for ticket in self._waiting}
        tickets |= {id(entry.ticket): entry.ticket for entry in self._reading}
        for ticket in tickets.values():
            ticket.emit(error)
        self._waiting, self._reading = Waiting(), []
        self._returning.clear()
        self._start_over()

    def end(self, adapter: str, error: AppError) -> None:
        """Tell the requests for an adapter that they won't be answered."""
        tickets = [ticket for ticket, _ in (*self._choices.values(), *self._returning)]
        tickets += [entry.ticket for entry in self._reading]
        for ticket in {id(one): one for one in (*tickets, *self._waiting)}.values():
            if ticket.adapter == adapter and not ticket.gone:
                ticket.emit(error)
                ticket.gone = True
        self._drop_gone()

    def turn(self) -> bool:
        """Do a piece of work; return whether there was any.

        A row whose numbers are not finite ends with its company: which of them it was can't be told.
        """
        self._drop_gone()
        read = self._read_on()
        if not self._decoder.rows:
            return read
        self._make_room()
        rows = list(self._decoder.rows)
        try:
            with self._policy.mixed([self._choices[id(row)][0].adapter for row in rows]):
                self._decoder.step()
        except NonFinite as problem:
            self._fail_rows(rows, problem)
            return True
        self._tell(rows)
        return True

    def _drop_gone(self) -> None:
        self._waiting.remove(lambda ticket: ticket.gone)
        self._returning = deque(one for one in self._returning if not one[0].gone)
        self._reading = [entry for entry in self._reading if not entry.ticket.gone]
        self._leave([row for row in self._decoder.rows if self._choices[id(row)][0].gone])

    # Reading prompts

    def _read_on(self) -> bool:
        self._take_up()
        if not self._reading:
            return False
        pieces: list[tuple[_Entry, tuple[int, ...]]] = []
        left = _PIECE
        for entry in self._reading:
            start = len(entry.past)
            piece = entry.tokens[start : start + left]
            left -= len(piece)
            if piece:
                pieces.append((entry, piece))
        states = self._read(pieces)
        for (entry, _), state in zip(pieces, states, strict=True):
            if len(entry.past) == len(entry.tokens):
                self._token_bytes = max(1, entry.past.nbytes // len(entry.past))
                self._reading.remove(entry)
                self._let_in(entry, state)
        return True

    def _read(self, pieces: Sequence[tuple[_Entry, tuple[int, ...]]]) -> list[Tensor]:
        """Read a piece of each text; return the state after its last token, [1, H] each."""
        device = self._policy.device
        lengths = [len(piece) for _, piece in pieces]
        starts = [len(entry.past) for entry, _ in pieces]
        tokens = torch.tensor([token for _, piece in pieces for token in piece], device=device)
        positions = torch.cat(
            [torch.arange(start, start + n, device=device) for start, n in zip(starts, lengths, strict=True)]
        )
        names = [entry.ticket.adapter for entry, piece in pieces for _ in piece]
        with self._policy.mixed(names):
            states = self._policy.hidden(
                tokens, positions, self._policy.reading([entry.past for entry, _ in pieces], lengths)
            )
        return [part[-1:] for part in torch.split(states, lengths)]

    def _take_up(self) -> None:
        """Begin as many waiting texts as one piece has room for."""
        while sum(len(entry.tokens) - len(entry.past) for entry in self._reading) < _PIECE:
            entry = self._next()
            if entry is None:
                return
            self._reading.append(entry)

    def _next(self) -> _Entry | None:
        """Return what to read next, if there is anything and there is room for it."""
        if self._returning:
            ticket, choice = self._returning[0]
            tokens = (*ticket.asked.token_ids, *choice.row.tokens[: choice.row.read])
            past = self._begin(ticket, tokens, 1)
            if past is None:
                return None
            self._returning.popleft()
            return _Entry(ticket, tokens, past, choice)
        if not self._waiting:
            return None
        ticket = next(iter(self._waiting))
        past = self._begin(ticket, ticket.tokens, len(ticket.choices))
        if past is None:
            return None
        self._waiting.take()
        ticket.cached = len(past)
        return _Entry(ticket, ticket.tokens, past)

    def _begin(self, ticket: Ticket, tokens: tuple[int, ...], rows: int) -> TextPast | None:
        """Return what is known of a text, or None where it must wait: for room, or for one it shares with."""
        if not self._fits(len(tokens), rows):
            return None
        past = self._prefixes.find(ticket.adapter, tokens)
        for entry in self._reading:
            same = entry.ticket.adapter == ticket.adapter
            if same and shared_length([entry.tokens, tokens]) - len(past) >= _SHARED:
                return None
        return past

    def _fits(self, length: int, rows: int) -> bool:
        """Say whether so many rows of a text may join; with nobody else there, they always may."""
        coming = [
            (1 if entry.returning is not None else len(entry.ticket.choices), len(entry.tokens))
            for entry in self._reading
        ]
        here = len(self._decoder.rows) + sum(own for own, _ in coming)
        if not here:
            return True
        if not self._token_bytes:  # what a token takes is known once a text was read
            return False
        need = sum(own * (tokens + _AHEAD) for own, tokens in [*coming, (rows, length)]) * self._token_bytes
        self._prefixes.shrink(max(0, self.room - self._layout.nbytes - need))
        return here < self._most_rows and self._layout.nbytes + need <= self.room

    def _let_in(self, entry: _Entry, state: Tensor) -> None:
        ticket = entry.ticket
        self._prefixes.keep(ticket.adapter, entry.tokens, entry.past)
        self._prefixes.shrink(max(0, self.room - self._layout.nbytes))
        if entry.returning is not None:
            self._layout.add(entry.past)
            self._choices[id(entry.returning.row)] = (ticket, entry.returning)
            self._decoder.rejoin([entry.returning.row])
            return
        choices = list(ticket.choices)
        while choices and not ticket.gone:
            # With many choices, those beyond the room get their first token and wait.
            part = choices[: self._free_seats(len(entry.tokens))]
            del choices[: len(part)]
            self._join(ticket, part, entry.past, state)
            self._make_room()

    def _free_seats(self, length: int) -> int:
        free = (self.room - self._layout.nbytes) // (length * self._token_bytes)
        return max(1, min(free, self._most_rows - len(self._decoder.rows)))

    def _join(self, ticket: Ticket, choices: Sequence[Choice], past: TextPast, state: Tensor) -> None:
        before = len(self._layout)
        self._layout.add(past, len(choices))
        rows = [choice.row for choice in choices]
        self._choices |= {id(choice.row): (ticket, choice) for choice in choices}
        try:
            self._decoder.join(rows, state, [0] * len(rows))
        except NonFinite as problem:
            self._layout.keep(list(range(before)))
            for row in rows:
                del self._choices[id(row)]
            ticket.emit(_not_finite(problem))
            ticket.gone = True
            return
        self._tell(rows)

    # Telling, making room, leaving

    def _tell(self, rows: Sequence[Row]) -> None:
        staying = {id(row) for row in self._decoder.rows}
        left = []
        for row in rows:
            ticket, choice = self._choices[id(row)]
            if len(row.tokens) > choice.tokens:
                ticket.tell(choice)
            if id(row) not in staying:
                del self._choices[id(row)]
            elif choice.ended:  # at a stop string, of which the row knows nothing
                left.append(row)
        self._leave(left)

    def _leave(self, rows: Sequence[Row]) -> None:
        if rows:
            self._decoder.leave(rows)
            for row in rows:
                del self._choices[id(row)]

    def _make_room(self) -> None:
        self._prefixes.shrink(max(0, self.room - self._layout.nbytes))
        while len(rows := self._decoder.rows) > 1 and (
            self._layout.nbytes > self.room or len(rows) > self._most_rows
        ):
            row = rows[-1]
            self._returning.append(self._choices[id(row)])
            self._leave([row])

    def _fail_rows(self, rows: Sequence[Row], problem: EngineError) -> None:
        for ticket in {id(self._choices[id(row)][0]): self._choices[id(row)][0] for row in rows}.values():
            ticket.emit(_not_finite(problem))
        self._start_over()

    def _start_over(self) -> None:
        self._layout = self._policy.new_rows()
        self._decoder = Decoder(self._policy, self._layout)
        self._choices.clear()


def _not_finite(problem: Exception) -> Unavailable:
    return Unavailable(f"The model can't be computed with: {problem}.", code="model_not_finite")

"""The requests of one base model: read, answered together, and told piece by piece.

A turn is a piece of what waits to be read and one token for every row. Sources share the rows evenly: where
one has fewer than another, the other's youngest row makes way for it. Memory for keys and values is bounded:
when it runs short, kept prefixes go first, then rows wait and are read again later. Driven by `house.py` on
the thread that computes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.core.errors import AppError, Unavailable
from worker.engine.decoder import Decoder, Row
from worker.engine.errors import NonFinite
from worker.engine.packing import shared_length
from worker.engine.pasts import TextPast
from worker.engine.policy import Policy
from worker.serving.choices import Choice
from worker.serving.prefixes import Prefixes
from worker.serving.ticket import Ticket
from worker.serving.waiting import Waiting

# Prompts that share so much more than is kept are not read side by side: the second goes on from the first.
_SHARED = 16
# Room a row should find before it is let in, in tokens.
_AHEAD = 64
# Texts of different sources read side by side when one of them alone fills the pieces.
_SIDE_BY_SIDE = 4


@dataclass(slots=True, eq=False)
class _Text:
    """What is read before choices can go on: a request's prompt for all of them, or one that had to wait.

    `past` is as far as it was read, None while it waits.
    """

    ticket: Ticket
    choices: list[Choice]
    tokens: tuple[int, ...]
    returns: bool = False
    past: TextPast | None = None

    @property
    def left(self) -> int:
        """How many tokens are still to be read."""
        return len(self.tokens) - (len(self.past) if self.past is not None else 0)


class Batch:
    """The rows of one base model and those that wait to join them.

    `room(wanted)` returns the bytes that keys and values may take, when so many are wanted. `bring(ticket)`
    has a request's adapter in memory, or returns False where it must wait for that; it raises AppError.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        most_rows: int,
        room: Callable[[int], int],
        bring: Callable[[Ticket], bool],
    ) -> None:
        self._policy = policy
        self._most_rows = most_rows
        self._room = room
        self._bring = bring
        self._layout = policy.new_rows()
        self._decoder = Decoder(policy, self._layout)
        self._prefixes = Prefixes(policy.new_past)
        self._waiting: Waiting[_Text] = Waiting()
        self._reading: list[_Text] = []
        self._choices: dict[int, tuple[Ticket, Choice]] = {}  # by the identity of the row
        self._coming: str | None = None  # the adapter of a text that is about to be read
        self._token_bytes = 0

    @property
    def nbytes(self) -> int:
        """The memory of all keys and values."""
        return self._layout.nbytes + self._prefixes.nbytes + self._read_bytes

    @property
    def rows(self) -> int:
        """How many answers are under way, those that had to make room among them."""
        reading = sum(len(text.choices) for text in self._reading)
        return len(self._decoder.rows) + reading + sum(text.returns for text in self._waiting)

    @property
    def waiting(self) -> int:
        """How many requests wait for their prompt to be read."""
        return sum(not text.returns for text in self._waiting)

    @property
    def is_urgent(self) -> bool:
        """Whether the prompt of somebody who has heard nothing yet is being read."""
        return any(not text.returns for text in self._reading)

    @property
    def computes(self) -> bool:
        """Whether anything is under way that will end by itself."""
        return bool(self._reading or self._decoder.rows)

    @property
    def is_idle(self) -> bool:
        """Whether there are no requests at all."""
        return not (self.computes or self._waiting)

    @property
    def adapters(self) -> set[str]:
        """The adapters that are computed with; those of requests that wait may go and come again."""
        names = {ticket.adapter for ticket, _ in self._choices.values()}
        names |= {text.ticket.adapter for text in self._reading} | {self._coming}
        return {name for name in names if name is not None}

    def add(self, ticket: Ticket) -> None:
        """Let a request wait for its turn."""
        self._waiting.add(ticket.source, _Text(ticket, list(ticket.choices), ticket.tokens))

    def forget(self, adapter: str) -> None:
        """Forget what was read through an adapter that goes."""
        self._prefixes.forget(adapter)

    def shrink(self, nbytes: int) -> None:
        """Give back so many bytes of kept prefixes, as far as there are any."""
        self._prefixes.shrink(max(0, self._prefixes.nbytes - nbytes))

    def fail(self, error: AppError) -> None:
        """Tell every request that it won't be answered."""
        for ticket in self._tickets():
            _refuse(ticket, error)
        self._waiting, self._reading = Waiting(), []
        self._start_over()

    def end(self, adapter: str, error: AppError) -> None:
        """Tell the requests for an adapter that they won't be answered."""
        for ticket in self._tickets():
            if ticket.adapter == adapter:
                _refuse(ticket, error)
        self._drop_gone()

    def turn(self, piece: int) -> bool:
        """Read a piece of so many tokens, and let every row say one; return whether there was anything to do.

        A row whose numbers are not finite ends with its company: which of them it was can't be told.
        """
        self._drop_gone()
        read = self._read_on(piece)
        if read or self._decoder.rows:
            self._hold()
        if not self._decoder.rows:
            return read
        rows = list(self._decoder.rows)
        try:
            with self._policy.mixed([self._choices[id(row)][0].adapter for row in rows]):
                self._decoder.step()
        except NonFinite as problem:
            for ticket in {id(ticket): ticket for ticket, _ in self._choices.values()}.values():
                _refuse(ticket, _not_finite(problem))
            self._start_over()
            return True
        self._tell(rows)
        return True

    def _tickets(self) -> list[Ticket]:
        """Return every request there is, once."""
        found = [ticket for ticket, _ in self._choices.values()]
        found += [text.ticket for text in (*self._reading, *self._waiting)]
        return list({id(ticket): ticket for ticket in found}.values())

    def _drop_gone(self) -> None:
        self._waiting.remove(lambda text: text.ticket.gone)
        self._reading = [text for text in self._reading if not text.ticket.gone]
        self._leave([row for row in self._decoder.rows if self._choices[id(row)][0].gone])

    # Reading prompts

    def _read_on(self, piece: int) -> bool:
        self._take_up(piece)
        if not self._reading:
            return False
        pieces = self._pieces(piece)
        for text, state in zip([text for text, _ in pieces], self._read(pieces), strict=True):
            if not text.left and text.past is not None:
                self._token_bytes = max(1, text.past.nbytes // len(text.past))
                self._reading.remove(text)
                self._let_in(text, text.past, state)
        return True

    def _pieces(self, piece: int) -> list[tuple[_Text, tuple[int, ...]]]:
        """Share a piece out evenly among the texts being read; what short ones leave goes to longer ones."""
        found = []
        texts = sorted(self._reading, key=lambda text: text.left)
        for index, text in enumerate(texts):
            own = min(text.left, -(-piece // (len(texts) - index)))
            if own:
                start = len(text.tokens) - text.left
                found.append((text, text.tokens[start : start + own]))
                piece -= own
        return found

    def _read(self, pieces: Sequence[tuple[_Text, tuple[int, ...]]]) -> list[Tensor]:
        """Read a piece of each text; return the state after its last token, [1, H] each."""
        device = self._policy.device
        pasts = [text.past for text, _ in pieces if text.past is not None]
        lengths = [len(piece) for _, piece in pieces]
        tokens = torch.tensor([token for _, piece in pieces for token in piece], device=device)
        positions = torch.cat(
            [
                torch.arange(len(past), len(past) + n, device=device)
                for past, n in zip(pasts, lengths, strict=True)
            ]
        )
        with self._policy.mixed([text.ticket.adapter for text, piece in pieces for _ in piece]):
            states = self._policy.hidden(tokens, positions, self._policy.reading(pasts, lengths))
        return [part[-1:] for part in torch.split(states, lengths)]

    def _take_up(self, piece: int) -> None:
        """Begin to read what waits, as far as a piece goes and there is room."""
        while (head := self._head(piece)) is not None:
            source, text = head
            self._coming = text.ticket.adapter
            try:
                past = self._begin(source, text)
            except AppError as problem:
                self._waiting.take(source)
                _refuse(text.ticket, problem)
                continue
            finally:
                self._coming = None
            if past is None:
                return
            self._waiting.take(source)
            text.past = past
            if not text.returns:
                text.ticket.cached = len(past)
            self._reading.append(text)

    def _head(self, piece: int) -> tuple[str, _Text] | None:
        """Return whose turn it is: of the sources with the fewest rows, the one that has waited longest."""
        heads = list(self._waiting.heads())
        if sum(text.left for text in self._reading) >= piece:
            # A long text of one source does not keep another's from being read.
            busy = {text.ticket.source for text in self._reading}
            heads = [head for head in heads if head[0] not in busy and len(self._reading) < _SIDE_BY_SIDE]
        held = self._held()
        return min(heads, key=lambda head: held[head[0]], default=None)

    def _begin(self, source: str, text: _Text) -> TextPast | None:
        """Return what is known of a text, or None where it must wait: for room, or for one it shares with."""
        if self._seats <= 0 and self._giving_way(source) is None:
            return None
        past = self._prefixes.find(text.ticket.adapter, text.tokens)
        for other in self._reading:
            same = other.ticket.adapter == text.ticket.adapter
            if same and shared_length([other.tokens, text.tokens]) - len(past) >= _SHARED:
                return None
        while not (self._seats > 0 and self._bring(text.ticket) and self._fits(len(text.tokens))):
            row = self._giving_way(source)
            if row is None:
                return None
            self._put_back([row])
        return past

    @property
    def _seats(self) -> int:
        return self._most_rows - len(self._decoder.rows) - len(self._reading)

    @property
    def _read_bytes(self) -> int:
        return sum(text.past.nbytes for text in self._reading if text.past is not None)

    def _need(self, length: int) -> int:
        """Return what a text takes: what is read of it, and a row that goes on from there."""
        return length * self._token_bytes + self._layout.bytes_for(length + _AHEAD, self._token_bytes)

    def _fits(self, length: int) -> bool:
        """Say whether a text of this length may be read for one row; where it is alone, it always may."""
        if not self.computes:
            return True
        if not self._token_bytes:  # what a token takes is known once a text was read
            return False
        need = self._need(length) + sum(self._need(len(text.tokens)) for text in self._reading)
        room = self._room(self._layout.nbytes + need)
        if self._layout.nbytes + need > room:
            self._layout.trim()
        if self._layout.nbytes + need > room:
            return False
        self._prefixes.shrink(room - self._layout.nbytes - need)
        return True

    def _let_in(self, text: _Text, past: TextPast, state: Tensor) -> None:
        ticket = text.ticket
        if text.returns:
            if not bool(state.isfinite().all()):
                _refuse(ticket, _not_finite(NonFinite("its state is not finite")))
                return
            self._layout.add(past)
            self._choices[id(text.choices[0].row)] = (ticket, text.choices[0])
            self._decoder.rejoin([text.choices[0].row])
        else:
            # With many choices, those beyond the room get their first token and wait.
            seats = self._free_seats(len(text.tokens), len(text.choices))
            for start in reversed(range(0, len(text.choices), seats)):
                part = text.choices[start : start + seats]
                if not self._join(ticket, part, past, state):
                    return
                if start:
                    self._put_back([choice.row for choice in part if id(choice.row) in self._choices])
        # Only now: what is not finite must not stay for those who begin alike.
        self._prefixes.keep(ticket.adapter, text.tokens, past)

    def _free_seats(self, length: int, wanted: int) -> int:
        """Return how many of the rows wanted of a text that was read find place, one at least."""
        taken = self._layout.nbytes + length * self._token_bytes
        taken += sum(self._need(len(text.tokens)) for text in self._reading)
        each = self._layout.bytes_for(length + _AHEAD, self._token_bytes)
        seats = min(wanted, self._seats)
        return max(1, min((self._room(taken + each * seats) - taken) // each, seats))

    def _join(self, ticket: Ticket, choices: Sequence[Choice], past: TextPast, state: Tensor) -> bool:
        """Let rows begin; return whether their numbers were finite."""
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
            _refuse(ticket, _not_finite(problem))
            return False
        self._tell(rows)
        return True

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

    def _put_back(self, rows: Sequence[Row]) -> None:
        """Have rows wait; the last of them comes last again."""
        for row in reversed(rows):
            ticket, choice = self._choices[id(row)]
            tokens = (*ticket.asked.token_ids, *row.tokens[: row.read])
            self._waiting.put_back(ticket.source, _Text(ticket, [choice], tokens, returns=True))
        self._leave(rows)

    def _victims(self) -> Iterator[Row]:
        """Yield all rows but one as they would make room: each time the youngest of who has most."""
        rows = list(self._decoder.rows)
        held = Counter(self._source_of(row) for row in rows)
        while len(rows) > 1:
            most = max(held.values())
            place = max(place for place, row in enumerate(rows) if held[self._source_of(row)] == most)
            row = rows.pop(place)
            held[self._source_of(row)] -= 1
            yield row

    def _giving_way(self, source: str) -> Row | None:
        """Return the row that makes way for a source: of one that will still have no fewer."""
        row = next(self._victims(), None)
        held = self._held()
        return row if row is not None and held[self._source_of(row)] >= held[source] + 2 else None

    def _held(self) -> Counter[str]:
        """Return how many rows each source has, those being read for among them."""
        rows = Counter(self._source_of(row) for row in self._decoder.rows)
        rows.update(text.ticket.source for text in self._reading)
        return rows

    def _source_of(self, row: Row) -> str:
        return self._choices[id(row)][0].source

    def _hold(self) -> None:
        """Have rows wait until the next token of the others finds room; one always goes on."""
        lengths = {
            id(row): len(self._choices[id(row)][0].asked.token_ids) + row.read for row in self._decoder.rows
        }
        size = {key: self._layout.bytes_for(length + 1, self._token_bytes) for key, length in lengths.items()}
        growth = sum(size.values()) - sum(
            self._layout.bytes_for(length, self._token_bytes) for length in lengths.values()
        )
        beside = growth + self._read_bytes
        room = self._room(self._layout.nbytes + beside)
        surplus = len(self._decoder.rows) - self._most_rows
        if self._layout.nbytes + beside > room or surplus > 0:
            self._layout.trim()
            over = self._layout.nbytes + beside - room
            leaving = []
            victims = self._victims()
            while (over > 0 or surplus > 0) and (row := next(victims, None)) is not None:
                leaving.append(row)
                over, surplus = over - size[id(row)], surplus - 1
            if leaving:
                self._put_back(leaving[::-1])
                self._layout.trim()
        self._prefixes.shrink(max(0, room - self._layout.nbytes - beside))

    def _start_over(self) -> None:
        self._layout = self._policy.new_rows()
        self._decoder = Decoder(self._policy, self._layout)
        self._choices.clear()


def _refuse(ticket: Ticket, error: AppError) -> None:
    """Tell a request that it won't be answered, unless nobody listens any more."""
    if not ticket.gone:
        ticket.emit(error)
        ticket.gone = True


def _not_finite(problem: Exception) -> Unavailable:
    return Unavailable(f"The model can't be computed with: {problem}.", code="model_not_finite")

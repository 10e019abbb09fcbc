"""What was read of texts that share nothing: read in pieces, then decoded as rows, each of its own length.

`TextPast` and `FreeRows` say what serving asks of them, whichever path the model runs on; here they are
keys and values (`plain.py` has the other). A `Past` is one text as far as it was read; `Rows` holds those
being decoded on shelves by length, so that a long text does not make the short ones pay. Serving drives both
through `decoder.py`; `attention.py` calls `attend` in every layer. Rows that share prompts and keep in step
have the cheaper layout of `decoding.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.attention import RowLayout, Rule, attend_where, capped

_LOWEST_SHELF = 64
# Of a shelf's seats, before their memory is given back: copying what stays is not worth less.
_FREE = 1 / 3


class TextPast(Protocol):
    """One text as far as it was read."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Its memory."""

    def head(self, length: int) -> Self:
        """Return the past of the first tokens, or of none of them; reading on leaves this one as it is."""


class FreeRows(RowLayout, Protocol):
    """Rows that go on from pasts, come and go."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """The memory held for all rows."""

    def bytes_for(self, length: int, token_bytes: float) -> int:
        """Return what a row that has read so much takes, if a token takes `token_bytes`."""

    def trim(self) -> None:
        """Give back the memory that no row uses."""

    def add(self, past: Any, copies: int = 1) -> None:
        """Take in rows that go on from a past, behind those there are."""


class Past:
    """One text's keys and values: reading on under this layout adds to them.

    Shapes: keys and values [Hkv, T, D], one a layer.
    """

    def __init__(self, keys: list[Tensor] | None = None, values: list[Tensor] | None = None) -> None:
        self.keys = keys or []
        self.values = values or []
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def __len__(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    @property
    def nbytes(self) -> int:
        """The memory of all layers."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def head(self, length: int) -> "Past":
        """Return the past of the first tokens, in this one's memory; reading on leaves that as it is."""
        return Past([key[:, :length] for key in self.keys], [value[:, :length] for value in self.values])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Read on: each new token sees all before it."""
        new = key.shape[1]
        if layer < len(self.keys):
            key = torch.cat([self.keys[layer], key], dim=1)
            value = torch.cat([self.values[layer], value], dim=1)
            self.keys[layer], self.values[layer] = key, value
        else:
            self.keys.append(key.contiguous())
            self.values.append(value.contiguous())
        repeats = query.shape[0] // key.shape[0]
        key, value = (tensor.repeat_interleave(repeats, dim=0) for tensor in (key, value))
        seen = self._seen(key.shape[1], new, rule.window, query.device)
        return attend_where(query, key, value, seen, rule).transpose(0, 1)

    def _seen(self, length: int, new: int, window: int | None, device: torch.device) -> Tensor:
        if (length, new, window) not in self._masks:
            self._masks.clear()
            keys = torch.arange(length, device=device)
            queries = keys[length - new :, None]
            seen = queries >= keys
            if window is not None:
                seen &= queries - keys < window
            self._masks[length, new, window] = seen
        return self._masks[length, new, window]


class Pasts:
    """Several texts read on in one forward, one behind the other. `lengths`: new tokens of each."""

    def __init__(self, pasts: Sequence[Past], lengths: Sequence[int]) -> None:
        self._pasts = pasts
        self._lengths = list(lengths)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Read each on by itself."""
        parts = zip(
            self._pasts, *(torch.split(one, self._lengths, dim=1) for one in (query, key, value)), strict=True
        )
        return torch.cat([past.attend(layer, *own, rule) for past, *own in parts])


@dataclass(slots=True)
class _Shelf:
    """Rows of about one length. Shapes: keys and values [seats, Hkv, room, D], one a layer."""

    room: int
    keys: list[Tensor]
    values: list[Tensor]
    rows: list[int] = field(default_factory=list)  # by seat: the row's number in the batch

    def put(self, row: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Give a row the next seat and copy in what it has read."""
        seat = len(self.rows)
        for store, parts in ((self.keys, keys), (self.values, values)):
            for layer, part in enumerate(parts):
                if seat == len(store[layer]):
                    more = torch.empty_like(store[layer][: max(1, seat // 4)])
                    store[layer] = torch.cat([store[layer], more])
                length = part.shape[1]
                store[layer][seat, :, :length] = part
                # What is masked is multiplied all the same, and who sat here before may have left NaN.
                store[layer][seat, :, length:] = 0
        self.rows.append(row)

    def free(self, seat: int) -> None:
        """Give a seat up; the last row moves into it, so that the seats stay together."""
        last = len(self.rows) - 1
        for tensor in (*self.keys, *self.values):
            tensor[seat] = tensor[last]
        self.rows[seat] = self.rows[last]
        self.rows.pop()

    def shrink(self, free: float) -> None:
        """Give memory back once more than this share of the seats is free."""
        taken, seats = len(self.rows), len(self.keys[0])
        if taken and seats - taken > free * seats:
            for store in (self.keys, self.values):
                store[:] = [tensor[:taken].clone() for tensor in store]

    @property
    def nbytes(self) -> int:
        """The memory of all seats, taken or free."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


@dataclass(frozen=True, slots=True)
class _Seating:
    """What a decode step needs to know of a shelf, the same in every layer."""

    shelf: _Shelf
    rows: Tensor | None  # [n] numbers in the batch; None where these are all, in order
    seats: Tensor  # [n]
    lengths: Tensor  # [n] tokens read before this one
    used: int

    def of(self, batch: Tensor) -> Tensor:
        """Return what is this shelf's of the batch's rows."""
        return batch if self.rows is None else batch[self.rows]


class Rows:
    """Attention of one new token per row against its own past: the layout of rows that come and go."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shelves: dict[int, _Shelf] = {}
        self._lengths: list[int] = []
        self._seatings: list[_Seating] | None = None
        self._hidden: dict[tuple[int, int | None], Tensor | None] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def nbytes(self) -> int:
        """The memory held for all rows."""
        return sum(shelf.nbytes for shelf in self._shelves.values())

    def bytes_for(self, length: int, token_bytes: float) -> int:
        """Return what a row that has read so much takes: a seat on its shelf."""
        return int(_shelf_room(length) * token_bytes)

    def trim(self) -> None:
        """Give back the seats that are free."""
        for shelf in self._shelves.values():
            shelf.shrink(0)

    def add(self, past: Past, copies: int = 1) -> None:
        """Take in rows that go on from a past, behind those there are."""
        for _ in range(copies):
            self._put(len(self._lengths), past.keys, past.values, len(past))
            self._lengths.append(len(past))
        self._moved()

    def positions(self) -> Tensor:
        """Return the position of each row's next token: [R]."""
        return torch.tensor(self._lengths, device=self._device)

    def advance(self) -> None:
        """Count the token just decoded in every row; one that has filled its shelf moves to a longer one."""
        self._lengths = [length + 1 for length in self._lengths]
        for shelf in list(self._shelves.values()):
            full = [seat for seat, row in enumerate(shelf.rows) if self._lengths[row] == shelf.room]
            for seat in full:
                keys, values = ([one[seat] for one in store] for store in (shelf.keys, shelf.values))
                self._put(shelf.rows[seat], keys, values, shelf.room)
            for seat in reversed(full):
                shelf.free(seat)
        self._moved()

    def keep(self, rows: list[int]) -> None:
        """Drop every row but these."""
        number = {old: new for new, old in enumerate(rows)}
        for shelf in list(self._shelves.values()):
            for seat in reversed(range(len(shelf.rows))):
                if shelf.rows[seat] not in number:
                    shelf.free(seat)
            shelf.rows = [number[row] for row in shelf.rows]
            shelf.shrink(_FREE)
        self._lengths = [self._lengths[row] for row in rows]
        self._moved()

    def _put(self, row: int, keys: Sequence[Tensor], values: Sequence[Tensor], length: int) -> None:
        room = _shelf_room(length)
        if room not in self._shelves:
            self._shelves[room] = _Shelf(
                room,
                [key.new_empty(1, key.shape[0], room, key.shape[2]) for key in keys],
                [value.new_empty(1, value.shape[0], room, value.shape[2]) for value in values],
            )
        self._shelves[room].put(row, keys, values)

    def _moved(self) -> None:
        self._shelves = {room: shelf for room, shelf in self._shelves.items() if shelf.rows}
        self._seatings = None
        self._hidden.clear()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Write down each row's new key and value, and return what its query finds."""
        heads, rows, width = key.shape
        repeats = query.shape[0] // heads
        # The queries that share a key's head stand where a text's queries would: no key is repeated.
        query = query.view(heads, repeats, rows, width).permute(2, 0, 1, 3)  # [R, Hkv, rep, D]
        out = query.new_empty(rows, heads, repeats, value.shape[-1])
        for index, seating in enumerate(self._seated()):
            keys, values = seating.shelf.keys[layer], seating.shelf.values[layer]
            keys[seating.seats, :, seating.lengths] = seating.of(key.transpose(0, 1))
            values[seating.seats, :, seating.lengths] = seating.of(value.transpose(0, 1))
            seats, used = len(seating.seats), seating.used
            hidden = self._hidden_from(index, seating, rule.window)
            found = _attend(seating.of(query), keys[:seats, :, :used], values[:seats, :, :used], hidden, rule)
            if seating.rows is None:
                out = found
            else:
                out[seating.rows] = found
        return out.reshape(rows, heads * repeats, -1)

    def _seated(self) -> list[_Seating]:
        if self._seatings is None:
            self._seatings = []
            for shelf in self._shelves.values():
                lengths = [self._lengths[row] for row in shelf.rows]
                numbers, seats, read = (
                    torch.tensor(values, device=self._device)
                    for values in (shelf.rows, list(range(len(lengths))), lengths)
                )
                all_in_order = shelf.rows == list(range(len(self._lengths)))
                self._seatings.append(
                    _Seating(shelf, None if all_in_order else numbers, seats, read, max(lengths) + 1)
                )
        return self._seatings

    def _hidden_from(self, index: int, seating: _Seating, window: int | None) -> Tensor | None:
        """Return what to add to the scores so that a row sees its own past alone: [n, 1, 1, used]."""
        if (index, window) not in self._hidden:
            keys = torch.arange(seating.used, device=self._device)
            own = seating.lengths[:, None]
            hidden = keys > own
            if window is not None:
                hidden |= own - keys >= window
            dtype = seating.shelf.keys[0].dtype
            added = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
            added.masked_fill_(hidden, float("-inf"))
            self._hidden[index, window] = added[:, None, None] if bool(hidden.any()) else None
        return self._hidden[index, window]


def _shelf_room(length: int) -> int:
    """Return the room of the shelf on which a row of this length sits, with place for its next token."""
    room = _LOWEST_SHELF
    while room <= length:
        room *= 2
    return room


def _attend(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, rule: Rule) -> Tensor:
    if rule.softcap is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=hidden, scale=rule.scale)
    scores = capped(query @ keys.transpose(-1, -2) * rule.scale, rule.softcap)
    if hidden is not None:
        scores = scores + hidden
    return scores.float().softmax(-1).to(values.dtype) @ values

"""Any causal model through transformers' own forward, unchanged: slower, and right where sharing is not.

Linear attention, state spaces, attention sinks and ALiBi know no token trees. Here every text of a tree is
written out as a row of its own, padded on the right, where a causal model does not look. Decoding uses
transformers' own cache, or reads everything again where a model has none; rows that began as one text go
together. `policy.py` takes this path when the shared one does not give the model's own numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout, Rule
from worker.engine.errors import UnsupportedModel
from worker.engine.linear import Mixture, Mode
from worker.engine.packing import Packed
from worker.engine.seeds import uniform

Head = Callable[[Tensor], Tensor]
"""Hidden states to logits."""

# What models call the thing that remembers the past.
_CACHES = ("past_key_values", "cache_params")
# When a model is tried out, so many tokens are read before its cache is gone on from.
_BEGINNING = 12


class Plain:
    """One model's forward. `ends_in_logits`: the states are the logits, as its head is not a matrix alone.

    `names`: while several adapters are served, the one of each token that is given; texts run one after the
    other here, so each has its own in force while it runs.
    """

    def __init__(self, causal: Any, note: str = "") -> None:
        self._causal = causal
        self.note = note
        self.ends_in_logits = False
        self.mode = Mode()
        self.names: Sequence[str | None] = ()
        self._cache: str | None = None
        self._reads_pieces = True  # several tokens at once behind a cache

    @classmethod
    def of(cls, causal: Any, head: Head, reason: str) -> Self:
        """Return the plain path of a model that cannot share, for a reason.

        Raises: UnsupportedModel for one that reads what comes after a token.
        """
        plain = cls(causal)
        plain._look_at(head)
        again = (
            "" if plain._cache else " It has no cache that rows can share, so every token reads all again."
        )
        plain.note = (
            f"{type(causal).__name__} runs on the plain path, which shares no prompts and is slower "
            f"({reason.rstrip('.')}).{again}"
        )
        return plain

    def hidden(self, token_ids: Tensor, layout: Any) -> Tensor:
        """Return the last hidden states of a packed row or of rows being decoded. Shapes: [N] -> [N, H]."""
        if isinstance(layout, PlainRows | PlainPasts):
            return layout.read(self, token_ids)
        packed = layout.packed
        if layout.remember:
            return self._prefill(packed, layout)
        rows, places = _written_out(packed)
        states, _ = self.forward(rows)
        return states.flatten(0, 1)[places]

    def forward(self, rows: Tensor, cache: Any = None, *, remember: bool = False) -> tuple[Tensor, Any]:
        """Return states and cache of whole texts, or of what follows a cache. Shapes: [R, T] -> [R, T, H]."""
        past = {self._cache: cache} if self._cache and cache is not None else {}
        model = self._causal if self.ends_in_logits else self._causal.get_decoder()
        out = model(input_ids=rows, use_cache=remember and self._cache is not None, **past)
        if self.ends_in_logits:
            states: Tensor = out.logits
        else:  # some carry float32 to the end, whatever their head's type is
            states = out.last_hidden_state.to(self._causal.get_output_embeddings().weight.dtype)
        return states, getattr(out, self._cache) if remember and self._cache else None

    def read_on(self, past: "PlainPast", new: Tensor, token: int) -> Tensor:
        """Let texts read on and return the new tokens' states. `token` is the place of one in the batch.

        Shapes: [R, T] -> [R, T, H].
        """
        if self.names:
            name = self.names[token]
            self.mode.mixture = None if name is None else Mixture((name,))
        past.texts = torch.cat([past.texts, new], dim=1)
        if self._cache is None:
            states, _ = self.forward(past.texts)
            return states[:, -new.shape[1] :]
        begins = past.cache is None
        found = []
        for piece in torch.split(new, new.shape[1] if begins or self._reads_pieces else 1, dim=1):
            states, past.cache = self.forward(piece, past.cache, remember=True)
            found.append(states)
        return torch.cat(found, dim=1)

    def _prefill(self, packed: Packed, layout: PackedLayout) -> Tensor:
        """Read each prompt, those of one length together, so that no cache ever holds padding."""
        trunks = _trunks(packed)
        states: list[Tensor] = [torch.empty(0)] * len(trunks)
        pasts = []
        for length in sorted({len(trunk) for trunk in trunks}):
            prompts = [index for index, trunk in enumerate(trunks) if len(trunk) == length]
            texts = torch.stack([trunks[index] for index in prompts])
            found, cache = self.forward(texts, remember=True)
            pasts.append(PlainPast(texts, cache, prompts))
            for index, own in zip(prompts, found, strict=True):
                states[index] = own
        layout.past = pasts
        common = states[0][: packed.common]
        return torch.cat([common, *(own[packed.common :] for own in states)])

    # What the model turns out to be

    @torch.no_grad()
    def _look_at(self, head: Head) -> None:
        """Find out how this model is to be run: its head, and whether rows of its cache can be picked."""
        config = self._causal.config.get_text_config()
        device = next(self._causal.parameters()).device
        text, other = (
            torch.tensor(
                [int(uniform(0, name, place) * config.vocab_size) for place in range(24)], device=device
            )
            for name in ("text", "decoy")
        )
        own = self._causal(input_ids=text[None], use_cache=False).logits[0].float()
        self.ends_in_logits = not _agree(head(self.forward(text[None])[0][0]), own)
        if self.ends_in_logits:
            head = torch.Tensor.float
        both = torch.stack([text, torch.cat([text[:12], other[:12]])])
        ahead = head(self.forward(both)[0][1, :12])
        if not _agree(ahead, own[:12]):
            name = type(self._causal).__name__
            raise UnsupportedModel(f"{name} is not supported: a token's numbers depend on what follows it")
        for name in _CACHES:
            self._cache = name
            if self._cached_agrees(head, text, own):
                return
        self._cache = None

    def _cached_agrees(self, head: Head, text: Tensor, own: Tensor) -> bool:
        """Say whether tokens read one by one behind a cache get the model's own numbers.

        Some state spaces do well there and yet forget their state when several come at once, so that is tried
        too: what it is off must be rounding, which is what reading one by one is off.
        """
        try:
            _, cache = self.forward(text[None, :_BEGINNING], remember=True)
            if not hasattr(cache, "reorder_cache"):
                return False
            cache.reorder_cache(torch.tensor([0, 0], device=text.device))
            again, rest, own = deepcopy(cache), text[None, _BEGINNING:].expand(2, -1), own[_BEGINNING:]
            found = []
            for token in torch.split(rest, 1, dim=1):
                states, cache = self.forward(token, cache, remember=True)
                found.append(head(states[1]))
            single = torch.cat(found)
            if not _agree(single, own):
                return False
        except Exception:  # boundary: other people's models say in many ways that they have no such cache
            return False
        try:
            together = head(self.forward(rest, again, remember=True)[0][1])
        except Exception:  # boundary: the same
            self._reads_pieces = False
        else:
            allowed = 2 * (single.float() - own).norm() + 1e-4 * own.norm()
            self._reads_pieces = bool((together.float() - own).norm() <= allowed)
        return True


class PlainPast:
    """Texts of one length and what the model remembers of them: the cache, or the tokens where it has none.

    A new one is a single text of which nothing was read. Shapes: `texts` [R, T].
    """

    def __init__(self, texts: Tensor, cache: Any = None, rows: Iterable[int] = (0,)) -> None:
        self.texts = texts
        self.cache = cache
        self.rows = list(rows)

    def __len__(self) -> int:
        return self.texts.shape[1]

    @property
    def nbytes(self) -> int:
        """The memory of the texts and the cache."""
        return _nbytes((self.texts, self.cache))

    def head(self, length: int) -> "PlainPast":
        """Return the past of the first tokens: of all, or of none, as what a model remembers can't be cut."""
        if length == len(self):
            return PlainPast(self.texts, deepcopy(self.cache))
        return PlainPast(self.texts[:, :0])

    def pick(self, places: list[int]) -> None:
        """Keep these rows, in this order; one may be taken several times."""
        index = torch.tensor(places, device=self.texts.device)
        self.rows = [self.rows[place] for place in places]
        self.texts = self.texts[index]
        if self.cache is not None:
            self.cache.reorder_cache(index)


class PlainPasts:
    """The layout of several texts read on, one behind the other. `lengths`: new tokens of each."""

    def __init__(self, pasts: Sequence[PlainPast], lengths: Sequence[int]) -> None:
        self._pasts = pasts
        self._lengths = list(lengths)

    def read(self, plain: Plain, token_ids: Tensor) -> Tensor:
        """Read each on by itself. Shapes: [N] -> [N, H]."""
        found = []
        start = 0
        for past, new in zip(self._pasts, torch.split(token_ids, self._lengths), strict=True):
            found.append(plain.read_on(past, new[None], start)[0])
            start += len(new)
        return torch.cat(found)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Raise: a model on this path runs its own attention."""
        raise _own_attention()


class PlainRows:
    """The layout of rows being decoded: those that began together go together."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pasts: list[PlainPast] = []

    @classmethod
    def after(cls, prefill: PackedLayout, row_prompts: list[int]) -> Self:
        """Return the rows that go on from prompts just read; those of one length go together."""
        rows = cls(prefill.packed.token_ids.device)
        rows._pasts = prefill.past
        for past in rows._pasts:
            seats = [
                (past.rows.index(prompt), row)
                for row, prompt in enumerate(row_prompts)
                if prompt in past.rows
            ]
            past.pick([seat for seat, _ in seats])
            past.rows = [row for _, row in seats]
        return rows

    def __len__(self) -> int:
        return sum(len(past.rows) for past in self._pasts)

    @property
    def nbytes(self) -> int:
        """The memory of all rows."""
        return sum(past.nbytes for past in self._pasts)

    def bytes_for(self, length: int, token_bytes: float) -> int:
        """Return what a row that has read so much takes, if a token takes `token_bytes`."""
        return int(length * token_bytes)

    def trim(self) -> None:
        """Nothing to give back: no more is held than the rows use."""

    def add(self, past: PlainPast, copies: int = 1) -> None:
        """Take in rows that go on from a text, behind those there are."""
        own = past.head(len(past))
        before = len(self)
        own.pick([0] * copies)
        own.rows = list(range(before, before + copies))
        self._pasts.append(own)

    def read(self, plain: Plain, token_ids: Tensor) -> Tensor:
        """Let every row read one token. Shapes: [R] -> [R, H]."""
        found: list[Tensor] = []
        for past in self._pasts:
            new = token_ids[torch.tensor(past.rows, device=self._device)][:, None]
            found.append(plain.read_on(past, new, past.rows[0])[:, -1])
        order = torch.tensor([row for past in self._pasts for row in past.rows], device=self._device)
        return torch.cat(found)[order.argsort()]

    def positions(self) -> Tensor:
        """Return a place for each row; the model counts its positions itself."""
        return torch.zeros(len(self), dtype=torch.long, device=self._device)

    def advance(self) -> None:
        """Nothing to count: the cache knows what it holds."""

    def keep(self, rows: list[int]) -> None:
        """Drop every row but these."""
        number = {old: new for new, old in enumerate(rows)}
        for past in self._pasts:
            places = [place for place, row in enumerate(past.rows) if row in number]
            if places and len(places) < len(past.rows):
                past.pick(places)
            past.rows = [number[row] for row in past.rows if row in number]
        self._pasts = [past for past in self._pasts if past.rows]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Raise: a model on this path runs its own attention."""
        raise _own_attention()


def _own_attention() -> RuntimeError:
    return RuntimeError("a model on the plain path runs its own attention")


def _nbytes(held: Any, seen: set[int] | None = None) -> int:
    """Return the memory of the tensors in something; models' caches are of many makes."""
    seen = set() if seen is None else seen
    if id(held) in seen or isinstance(held, type):
        return 0
    seen.add(id(held))
    if isinstance(held, Tensor):
        return held.nbytes
    if isinstance(held, Mapping):
        held = list(held.values())
    elif not isinstance(held, list | tuple):
        held = list(vars(held).values()) if hasattr(held, "__dict__") else []
    return sum(_nbytes(one, seen) for one in held)


def _agree(ours: Tensor, own: Tensor) -> bool:
    tolerance = 1e-3 if own.dtype == torch.float32 and ours.dtype == torch.float32 else 0.5
    return bool((ours.float() - own).abs().max() <= tolerance * own.abs().max().clamp(min=1.0))


def _trunks(packed: Packed) -> list[Tensor]:
    """Return each prompt's whole text."""
    common = packed.token_ids[: packed.common]
    return [torch.cat([common, packed.token_ids[span.start : span.stop]]) for span in packed.spans]


def _written_out(packed: Packed) -> tuple[Tensor, Tensor]:
    """Return every text of the trees as a row, and where each packed token's state lies among them.

    A token that several texts share is read in the first of them: the states are equal, and so are the sums
    of their gradients.
    Shapes: [R, T] padded with 0 on the right; [N] places in the flattened [R · T].
    """
    common = list(range(packed.common))
    rows: list[list[int]] = []
    place_of: dict[int, tuple[int, int]] = {}
    for span in packed.spans:
        trunk = [*common, *range(span.start, span.start + span.trunk)]
        branches = [range(start, stop) for start, stop in pairwise([*span.branch_starts, span.stop])]
        for branch in branches or [range(0)]:
            row = [*trunk, *branch]
            for column, place in enumerate(row):
                place_of.setdefault(place, (len(rows), column))
            rows.append(row)
    width = max(len(row) for row in rows)
    device = packed.token_ids.device
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in rows], device=device)
    texts = torch.where(padded >= 0, packed.token_ids[padded.clamp(min=0)], 0)
    flat = [place_of[place][0] * width + place_of[place][1] for place in range(len(packed.token_ids))]
    return texts, torch.tensor(flat, device=device)

"""Any causal model through transformers' own forward, unchanged: slower, and right where sharing is not.

Linear attention, state spaces, attention sinks and ALiBi know no token trees. Here every text of a tree is
written out as a row of its own, padded on the right, where a causal model does not look. Decoding uses
transformers' own cache, or reads everything again where a model has none. `policy.py` takes this path when
the shared one does not give the model's own numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout, Rule
from worker.engine.errors import UnsupportedModel
from worker.engine.packing import Packed
from worker.engine.seeds import uniform

Head = Callable[[Tensor], Tensor]
"""Hidden states to logits."""

# What models call the thing that remembers the past.
_CACHES = ("past_key_values", "cache_params")


class Plain:
    """One model's forward. `ends_in_logits`: the states are the logits, as its head is not a matrix alone."""

    def __init__(self, causal: Any, note: str = "") -> None:
        self._causal = causal
        self.note = note
        self.ends_in_logits = False
        self._cache: str | None = None

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
        if isinstance(layout, PlainRows):
            return layout.decode(self, token_ids)
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
        states: Tensor = out.logits if self.ends_in_logits else out.last_hidden_state
        return states, getattr(out, self._cache) if remember and self._cache else None

    def _prefill(self, packed: Packed, layout: PackedLayout) -> Tensor:
        """Read each prompt, those of one length together, so that no cache ever holds padding."""
        trunks = _trunks(packed)
        states: list[Tensor] = [torch.empty(0)] * len(trunks)
        pasts = []
        for length in sorted({len(trunk) for trunk in trunks}):
            prompts = [index for index, trunk in enumerate(trunks) if len(trunk) == length]
            texts = torch.stack([trunks[index] for index in prompts])
            found, cache = self.forward(texts, remember=True)
            pasts.append(_Past(prompts, texts, cache))
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
        try:
            _, cache = self.forward(text[None, :20], remember=True)
            if not hasattr(cache, "reorder_cache"):
                return False
            cache.reorder_cache(torch.tensor([0, 0], device=text.device))
            for place in range(20, len(text)):
                states, cache = self.forward(text[None, place, None].expand(2, 1), cache, remember=True)
                if not _agree(head(states[1, 0]), own[place]):
                    return False
        except Exception:  # boundary: other people's models say in many ways that they have no such cache
            return False
        return True


@dataclass(slots=True)
class _Past:
    """Texts of one length and what the model remembers of them; without a cache their tokens are kept."""

    rows: list[int]
    texts: Tensor  # [R, T]
    cache: Any

    def pick(self, places: list[int]) -> None:
        """Keep these rows, in this order; one may be taken several times."""
        index = torch.tensor(places, device=self.texts.device)
        self.rows = [self.rows[place] for place in places]
        self.texts = self.texts[index]
        if self.cache is not None:
            self.cache.reorder_cache(index)


class PlainRows:
    """The layout of rows being decoded on the plain path: rows whose texts have one length go together."""

    def __init__(self, prefill: PackedLayout, row_prompts: list[int]) -> None:
        self._device = prefill.packed.token_ids.device
        self._pasts: list[_Past] = prefill.past
        for past in self._pasts:
            seats = [
                (past.rows.index(prompt), row)
                for row, prompt in enumerate(row_prompts)
                if prompt in past.rows
            ]
            past.pick([seat for seat, _ in seats])
            past.rows = [row for _, row in seats]

    def decode(self, plain: Plain, token_ids: Tensor) -> Tensor:
        """Let every row read one token. Shapes: [R] -> [R, H]."""
        found: list[tuple[list[int], Tensor]] = []
        for past in self._pasts:
            new = token_ids[torch.tensor(past.rows, device=self._device)][:, None]
            if past.cache is None:
                past.texts = torch.cat([past.texts, new], dim=1)
                states, _ = plain.forward(past.texts)
            else:
                states, past.cache = plain.forward(new, past.cache, remember=True)
            found.append((past.rows, states[:, -1]))
        order = torch.tensor([row for rows, _ in found for row in rows], device=self._device)
        return torch.cat([states for _, states in found])[order.argsort()]

    def positions(self) -> Tensor:
        """Return a place for each row; the model counts its positions itself."""
        return torch.zeros(sum(len(past.rows) for past in self._pasts), dtype=torch.long, device=self._device)

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
        raise RuntimeError("a model on the plain path runs its own attention")


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

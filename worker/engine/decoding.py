"""Keys and values of rows being decoded, on three levels: common prefix, prompt, answer.

Each level is stored once, whoever shares it, and a decode step reads each once. Rows leave when they finish;
nothing is padded to the longest answer. The decoder drives it; `attention.py` calls `attend` in every layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.attention import PackedLayout, Rule, capped

_FIRST_ROOM = 16


class DecodeLayout:
    """Attention of one new token per row against its shared and its own past.

    Shapes: C common, S longest prompt rest, T answer so far; common [Hkv, C, D], prompts [P, Hkv, S, D],
    own [R, Hkv, T, D], a list of each with one entry a layer.
    """

    def __init__(self, prefill: PackedLayout, row_prompts: list[int]) -> None:
        packed = prefill.packed
        device = packed.token_ids.device
        self.common = packed.common
        lengths = [span.stop - span.start for span in packed.spans]
        self.fork = torch.tensor([self.common + length for length in lengths], device=device)
        offsets = torch.arange(max(lengths), device=device)
        starts = torch.tensor([span.start for span in packed.spans], device=device)
        self.padding = offsets >= torch.tensor(lengths, device=device)[:, None]  # [P, S]
        where = (starts[:, None] + offsets).clamp(max=len(packed.token_ids) - 1)
        self.common_keys = [key[:, : self.common].contiguous() for key in prefill.keys]
        self.common_values = [value[:, : self.common].contiguous() for value in prefill.values]
        self.prompt_keys = [key[:, where].transpose(0, 1).contiguous() for key in prefill.keys]
        self.prompt_values = [value[:, where].transpose(0, 1).contiguous() for value in prefill.values]
        heads, _, width = prefill.keys[0].shape
        room = (len(row_prompts), heads, _FIRST_ROOM, width)
        self.own_keys = [key.new_empty(room) for key in prefill.keys]
        self.own_values = [value.new_empty(*room[:3], value.shape[-1]) for value in prefill.values]
        self.length = 0  # own tokens that are complete in every layer
        self._place(row_prompts)

    def positions(self) -> Tensor:
        """Return the position of each row's next token: [R]."""
        return self.fork[self.prompt_of] + self.length

    def advance(self) -> None:
        """Count the token just decoded, making room for the next."""
        self.length += 1
        self._hidden_from.clear()
        if self.length == self.own_keys[0].shape[2]:
            for store in (self.own_keys, self.own_values):
                for layer, own in enumerate(store):
                    store[layer] = torch.cat([own, torch.empty_like(own)], dim=2)

    def keep(self, rows: list[int]) -> None:
        """Drop every row but these, and the prompts nobody stands on any more."""
        if not rows:  # the end of the wave: nothing is decoded here again
            return
        prompts = self.prompt_of.tolist()
        staying = [prompts[row] for row in rows]
        index = torch.tensor(rows, device=self.prompt_of.device)
        for store in (self.own_keys, self.own_values):
            for layer, own in enumerate(store):
                store[layer] = own[index]
        used = sorted(set(staying))
        if len(used) < len(self.fork):
            chosen = torch.tensor(used, device=index.device)
            self.fork, self.padding = self.fork[chosen], self.padding[chosen]
            for store in (self.prompt_keys, self.prompt_values):
                for layer, prompt in enumerate(store):
                    store[layer] = prompt[chosen]
            renumbered = {old: new for new, old in enumerate(used)}
            staying = [renumbered[prompt] for prompt in staying]
        self._place(staying)

    def _place(self, row_prompts: list[int]) -> None:
        # Rows of one prompt side by side in a [P, G] grid, so the prompt's keys are multiplied once for all.
        # The grid's empty seats repeat row 0 and are never read back.
        seats: list[list[int]] = [[] for _ in range(len(self.fork))]
        seat_of = []
        for row, prompt in enumerate(row_prompts):
            seat_of.append(len(seats[prompt]))
            seats[prompt].append(row)
        widest = max(len(rows) for rows in seats)
        # While every prompt has as many rows, side by side, the grid is a view and nothing is moved.
        self.even = [row for rows in seats for row in rows] == list(range(widest * len(seats)))
        device = self.fork.device
        self.grid = torch.tensor([rows + [0] * (widest - len(rows)) for rows in seats], device=device)
        self.prompt_of = torch.tensor(row_prompts, device=device)
        self.seat_of = torch.tensor(seat_of, device=device)
        self._hidden_from: dict[tuple[int | None, int], Tensor | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        heads, rows, width = key.shape
        own_keys, own_values = self.own_keys[layer], self.own_values[layer]
        own_keys[:, :, self.length] = key.transpose(0, 1)
        own_values[:, :, self.length] = value.transpose(0, 1)
        now = self.length + 1
        repeats = query.shape[0] // heads
        query = query.view(heads, repeats, rows, width).permute(2, 0, 1, 3) * rule.scale  # [R, Hkv, rep, D]
        scores = torch.cat(
            [
                self._with_common(query, self.common_keys[layer].transpose(-1, -2)),
                self._with_prompts(query, self.prompt_keys[layer].transpose(-1, -2)),
                query @ own_keys[:, :, :now].transpose(-1, -2),
            ],
            dim=-1,
        )  # [R, Hkv, rep, C + S + T]
        scores = capped(scores, rule.softcap)
        if (hidden := self._hidden(rule.window, now)) is not None:
            scores.masked_fill_(hidden, float("-inf"))
        shares = scores.float().softmax(-1).to(value.dtype)
        common, prompt, own = torch.split(shares, [self.common, self.padding.shape[1], now], dim=-1)
        out = self._with_prompts(prompt, self.prompt_values[layer]) + own @ own_values[:, :, :now]
        if self.common:
            out = out + self._with_common(common, self.common_values[layer])
        return out.reshape(rows, heads * repeats, -1)

    def _with_common(self, left: Tensor, right: Tensor) -> Tensor:
        rows, heads, repeats, width = left.shape
        flat = left.transpose(0, 1).reshape(heads, rows * repeats, width)
        return (flat @ right).view(heads, rows, repeats, right.shape[-1]).transpose(0, 1)

    def _with_prompts(self, left: Tensor, right: Tensor) -> Tensor:
        rows, heads, repeats, width = left.shape
        prompts, seats = self.grid.shape
        seated = left.view(prompts, seats, heads, repeats, width) if self.even else left[self.grid]
        seated = seated.transpose(1, 2).reshape(prompts, heads, seats * repeats, width)
        product = (seated @ right).view(prompts, heads, seats, repeats, -1)
        if self.even:
            return product.transpose(1, 2).reshape(rows, heads, repeats, -1)
        return product[self.prompt_of, :, self.seat_of]

    def _hidden(self, window: int | None, now: int) -> Tensor | None:
        """Return what each row may not see of [common, prompt, own]: [R, 1, 1, C + S + T]; None: nothing."""
        if (window, now) in self._hidden_from:
            return self._hidden_from[window, now]
        padding = self.padding[self.prompt_of]  # [R, S]
        hidden = F.pad(padding, (self.common, now))
        if window is not None:
            device = padding.device
            before = torch.arange(self.common + padding.shape[1], device=device).expand(len(padding), -1)
            fork = self.fork[self.prompt_of][:, None]
            keys = torch.cat([before, fork + torch.arange(now, device=device)], dim=1)
            hidden = hidden | (fork + now - 1 - keys >= window)
        found = hidden[:, None, None] if bool(hidden.any()) else None
        self._hidden_from[window, now] = found
        return found

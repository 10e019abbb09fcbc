"""The work both sides of the engine's bench do: shapes, prompts, planted rewards, and how a side is driven.

A side is a process of its own Python that steps when told: `serve` is its end of the pipe. Nothing here needs
more than the standard library, so that either environment can import it.
"""

import hashlib
import json
import random
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

MARK = "@bench "
RANK, ALPHA, RATE = 16, 32, 1e-5
_WORDS = "river market yellow seven train garden paper window night stone letter music doctor summer glass"


@dataclass(frozen=True, slots=True)
class Shape:
    """P prompts of about so many tokens, G answers each, of exactly so many tokens."""

    prompts: int
    answers: int
    answer_tokens: int
    prompt_tokens: int

    @property
    def name(self) -> str:
        return f"{self.prompts}x{self.answers}x{self.answer_tokens}"

    @property
    def samples(self) -> int:
        return self.prompts * self.answers


SHAPES = {shape.name: shape for shape in (Shape(4, 8, 48, 30), Shape(8, 8, 8, 300), Shape(2, 32, 32, 30))}


@dataclass(frozen=True, slots=True)
class Work:
    """What a side is told when it starts. `settings` are TRL's; `steps` is how many it will be asked for."""

    shape: Shape
    model: str
    steps: int
    threads: int | None
    settings: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Work":
        values = json.loads(text)
        return cls(**{**values, "shape": Shape(**values["shape"])})


def prompt_texts(shape: Shape, encode: Callable[[str], Sequence[int]]) -> list[str]:
    """Return a shape's prompts: plain words with no common beginning, of its length by this tokenizer."""
    texts = []
    for index in range(shape.prompts):
        draw = random.Random(f"{shape.name} {index}")
        words: list[str] = []
        while len(encode(" ".join(words))) < shape.prompt_tokens:
            words.append(draw.choice(_WORDS.split()))
        texts.append(" ".join(words))
    return texts


def planted(index: int) -> float:
    """Return the reward of an answer by its place: every second one is right, so each group has signal."""
    return float(index % 2)


def fingerprint(prompts: Sequence[Sequence[int]]) -> str:
    """Return what two sides with the same prompts have in common, whatever the order and how often."""
    different = sorted({tuple(tokens) for tokens in prompts})
    return hashlib.sha256(json.dumps(different).encode()).hexdigest()[:16]


def peak_mb() -> float:
    """Return the most memory this process has held, in MB."""
    return _status("VmHWM") or _most_mb()


def resident_mb() -> float:
    """Return the memory this process holds now, in MB; the most it has held where the system won't say."""
    return _status("VmRSS") or _most_mb()


def _status(name: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


def _most_mb() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def orders() -> Iterator[None]:
    """Yield once for every step this side is told to take."""
    for line in sys.stdin:
        if line.strip() == "end":
            return
        yield


def say(kind: str, **facts: Any) -> None:
    """Tell whoever drives this side something."""
    print(MARK + json.dumps({"kind": kind, **facts}), flush=True)


def matrix_rate(torch: Any, device: Any, dtype: Any) -> float:
    """Return operations a second of large matrix products on this side's threads, the median of several."""
    size = 2048
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    rates = []
    for turn in range(6):
        start = perf_counter()
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            rates.append(2 * size**3 / (perf_counter() - start))
    return float(sorted(rates)[len(rates) // 2])

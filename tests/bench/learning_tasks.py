"""What the learning bench teaches: worked examples, rewards a function can check, held-out items.

Both sides import this, so it needs no more than the standard library.
"""

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# A text to go on with, or a conversation to answer.
Asked = str | list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Item:
    """What is asked and what is right."""

    asked: Asked
    right: str


@dataclass(frozen=True, slots=True)
class Task:
    """A training set, held-out items, and a run's numbers: P prompts a step, G answers, so many steps."""

    name: str
    train: Sequence[Item]
    held_out: Sequence[Item]
    reward: Callable[[str, str], float]
    prompts: int
    answers: int
    steps: int
    answer_tokens: int
    held_out_answers: int
    rate_multiplier: float = 1.0
    # Whether it is taught to the tests' tiny model instead of a real one.
    tiny: bool = False


def task(name: str) -> Task:
    """Return a task by its name, with `STEPS` from the environment if it says so."""
    return {"letter": _letter, "sums": _sums, "orders": _orders, "genes": _genes}[name]()


def _steps(usual: int) -> int:
    return int(os.environ.get("STEPS", usual))


def _letter() -> Task:
    """Say a, and nothing else: what even a tiny model of random weights can learn, in seconds a side."""
    items = [Item(f"Say {number:02d}\n", "a") for number in range(96)]
    return Task("letter", items[:64], items[64:], _share, 8, 8, _steps(24), 16, 8, tiny=True)


def _share(answer: str, right: str) -> float:
    return answer.count(right) / max(len(answer), 16)


def _sums() -> Task:
    """Sums of two two-digit numbers after two worked ones: a small model is right now and then."""
    draw = random.Random("sums")
    pairs = [(a, b) for a in range(10, 50) for b in range(10, 50)]
    draw.shuffle(pairs)
    items = [Item(f"12+13=25\n31+16=47\n{a}+{b}=", str(a + b)) for a, b in pairs]
    return Task("sums", items[:400], items[400:550], _first_line, 4, 8, _steps(16), 4, 2, rate_multiplier=2.0)


def _first_line(answer: str, right: str) -> float:
    return float(answer.strip().split("\n")[0].strip() == right)


def _orders() -> Task:
    """The sample project's messages with their worked examples, and nothing that forces JSON."""
    folder = ROOT / "examples" / "order-numbers"
    train, test = (
        [Item(row["messages"], row["order_number"]) for row in _rows(folder / f"{split}.jsonl")]
        for split in ("train", "test")
    )
    return Task("orders", train, test, _order_number, 8, 8, _steps(20), 24, 1)


def _order_number(answer: str, right: str) -> float:
    try:
        said = json.loads(answer)
    except ValueError:
        return 0.0
    return float(isinstance(said, dict) and said.get("order_number") == right)


def _genes() -> Task:
    """Rank the gene behind a case report; a right gene at place n of the first five is worth 1/n."""
    folder = Path(os.environ.get("GENES_DIR", ROOT / ".." / "shared" / "bench" / "genes"))
    train, valid = (
        [Item(row["messages"], row["gene"]) for row in _rows(folder / f"{split}.jsonl")]
        for split in ("train", "valid")
    )
    return Task("genes", train, valid, _rank, 16, 8, _steps(60), 48, 1)


def _rank(answer: str, right: str) -> float:
    named = re.findall(r"[A-Z0-9-]{2,}", answer)[:5]
    return 1 / (named.index(right) + 1) if right in named else 0.0


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise SystemExit(f"{file} is not there: name the gene benchmark's folder with GENES_DIR.")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

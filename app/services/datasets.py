"""Datasets of reinforcement fine-tuning: check a file line by line, read its rows, hold some out.

Reads a local path as a stream; knows no database. `check_dataset` runs when a job starts, as OpenAI does it:
bad data is a failed job, not a refused request. What one line must look like stands in `dataset_rows`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from app.graders.spec import Grader, ItemField, item_fields
from app.graders.template import UnresolvedVariable
from app.services.dataset_rows import MAX_LINE_BYTES, BadLine, Row, nearest, read_row

Role = Literal["training_file", "validation_file", "test_file"]

# Source: OpenAI's limits of RFT. A test file is answered twice in whole, so it has the validation file's.
ROW_LIMITS: dict[Role, int] = {"training_file": 50_000, "validation_file": 1_000, "test_file": 1_000}
FEW_ROWS = 10
MAX_COMPLAINTS = 20
MAX_HOLDOUT = 100

_SHOWN_LINES = 3
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "begins with a byte order mark; save it as UTF-8 without one",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}


class DatasetError(Exception):
    """Why a file cannot be used: the `error` of the failed job."""

    def __init__(self, code: str, param: Role, message: str) -> None:
        # A complaint may quote a key of the file that no database can store.
        self.message = message.encode("utf-8", "replace").decode()
        super().__init__(self.message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a good file holds. `prompts` has one digest per row, in order; `sha256` is the file's, in hex."""

    role: Role
    rows: int
    fields: tuple[str, ...]
    warnings: tuple[str, ...]
    prompts: tuple[bytes, ...]
    sha256: str

    @property
    def duplicates(self) -> int:
        """Return how many rows repeat the prompt of an earlier one."""
        return self.rows - len(set(self.prompts))


def check_dataset(path: Path, *, role: Role, grader: Grader | None, max_rows: int) -> DatasetSummary:
    """Check every line of a file, and that each row has the fields the grader reads.

    Raises: DatasetError, whose message names the file's role, the lines and the keys at fault.
    """
    with path.open("rb") as file:
        start = file.read(3)
        for mark, what in _BYTE_ORDER_MARKS.items():
            if start.startswith(mark):
                raise _invalid(role, f"The file {what}.")
    check = _Check(role, item_fields(grader) if grader is not None else (), max_rows)
    for number, line in _lines(path, check.digest):
        check.line(number, line)
    return check.summary()


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that `check_dataset` has passed.

    Raises: BadLine, when it has not.
    """
    index = 0
    for _, line in _lines(path, hashlib.sha256()):
        if line.strip():
            yield read_row(line, index)
            index += 1


def split_holdout(n_rows: int, seed_text: str) -> tuple[list[int], list[int]]:
    """Return the row indexes to train on and those to validate on, both ascending.

    A tenth is held out, at least 1 and at most 100; a single row holds out nothing. The same text (the file's
    sha256) always gives the same split, on any machine.
    """
    held = min(max(n_rows // 10, 1), MAX_HOLDOUT) if n_rows > 1 else 0
    ranked = sorted(range(n_rows), key=lambda index: hashlib.sha256(f"{seed_text}:{index}".encode()).digest())
    return sorted(ranked[held:]), sorted(ranked[:held])


def overlap(a: DatasetSummary, b: DatasetSummary) -> int:
    """Return how many rows of `b` ask what some row of `a` asks."""
    known = set(a.prompts)
    return sum(prompt in known for prompt in b.prompts)


@dataclass(slots=True)
class _Check:
    """The state of one pass over a file."""

    role: Role
    reads: tuple[ItemField, ...]
    max_rows: int
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    seen: int = 0
    blank: int = 0
    prompts: list[bytes] = field(default_factory=list)
    fields: dict[str, None] = field(default_factory=dict)
    complaints: dict[str, list[int]] = field(default_factory=dict)

    def line(self, number: int, line: bytes) -> None:
        if not line.strip():
            self.blank += 1
            return
        self.seen += 1
        if self.seen > self.max_rows:
            noun = _noun(self.role).capitalize()
            message = f"{noun} has more than {self.max_rows:,} examples, the most that is allowed"
            raise DatasetError("invalid_n_examples", self.role, message)
        try:
            row = read_row(line, self.seen - 1)
            found = [complaint for read in self.reads if (complaint := _lacks(row, read))]
        except BadLine as error:
            self._complain(number, error.complaints)
            return
        self._complain(number, found)
        self.prompts.append(row.prompt_hash)
        self.fields.update(dict.fromkeys(row.item))

    def summary(self) -> DatasetSummary:
        if self.complaints:
            raise self._failure()
        if not self.seen:
            message = f"{_noun(self.role).capitalize()} has 0 example(s), but must have at least 1 example"
            raise DatasetError("invalid_n_examples", self.role, message)
        return DatasetSummary(
            role=self.role,
            rows=self.seen,
            fields=tuple(self.fields),
            warnings=tuple(self._warnings()),
            prompts=tuple(self.prompts),
            sha256=self.digest.hexdigest(),
        )

    def _complain(self, number: int, complaints: "tuple[str, ...] | list[str]") -> None:
        for complaint in complaints:
            if complaint not in self.complaints and len(self.complaints) == MAX_COMPLAINTS:
                raise self._failure(stopped=True)
            self.complaints.setdefault(complaint, []).append(number)

    def _failure(self, *, stopped: bool = False) -> DatasetError:
        told = [f"{_places(lines)}: {complaint}" for complaint, lines in self.complaints.items()]
        if stopped:
            told.append(f"Reading stopped after {MAX_COMPLAINTS} kinds of error.")
        return _invalid(self.role, " ".join(told))

    def _warnings(self) -> Iterator[str]:
        noun = _noun(self.role)
        if self.role == "training_file" and self.seen < FEW_ROWS:
            yield f"The {noun} has only {self.seen} example(s); several dozen are recommended."
        repeated = self.seen - len(set(self.prompts))
        if repeated:
            yield f"In the {noun}, {repeated} example(s) repeat the prompt of an earlier one."
        if self.blank:
            yield f"The {noun} has {self.blank} blank line(s), which were passed over."


def _lacks(row: Row, read: ItemField) -> str | None:
    try:
        read.variable.resolve(row.item)
    except UnresolvedVariable:
        first = str(read.variable.path[0])
        where = " and ".join(f"`{place}`" for place in read.places[:2])
        told = f"The grader's {where} reads `{read.path}`, but the row has no"
        if first in row.item:
            return f"{told} such path in `{first}`."
        return f"{told} `{first}`{nearest(first, row.item)}"
    return None


def _lines(path: Path, digest: "hashlib._Hash") -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines without their end; of one over the limit only the beginning is in memory."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 3):
            number += 1
            digest.update(line)
            is_cut = not line.endswith(b"\n") and _skip_line(file, digest)
            yield number, line if is_cut else line.rstrip(b"\r\n")


def _skip_line(file: BinaryIO, digest: "hashlib._Hash") -> bool:
    """Read on to the end of the line; say whether there was more of it."""
    was_more = False
    while rest := file.readline(MAX_LINE_BYTES):
        was_more = True
        digest.update(rest)
        if rest.endswith(b"\n"):
            break
    return was_more


def _invalid(role: Role, message: str) -> DatasetError:
    text = f"The job failed due to an invalid {_noun(role)}. {message}"
    return DatasetError(f"invalid_{role}", role, text)


def _noun(role: Role) -> str:
    return role.replace("_", " ")


def _places(lines: list[int]) -> str:
    shown = ", ".join(str(number) for number in lines[:_SHOWN_LINES])
    more = len(lines) - _SHOWN_LINES
    if len(lines) == 1:
        return f"Line {shown}"
    return f"Lines {shown} and {more:,} more" if more > 0 else f"Lines {shown}"

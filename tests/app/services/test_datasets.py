"""Dataset checks on real files: what passes, what each bad line is told, and how rows are held out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.graders.spec import Grader, parse_grader
from app.services.datasets import (
    ROW_LIMITS,
    DatasetError,
    DatasetSummary,
    Role,
    check_dataset,
    overlap,
    read_rows,
    split_holdout,
)

GRADER = parse_grader(
    {
        "type": "string_check",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer.cities[0]}} {{ item.label }}",
        "operation": "eq",
    }
)


def _row(text: str = "Where?", **item: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **({"label": "x"} | item)}


def _said(*messages: Any, **item: Any) -> dict[str, Any]:
    return _row(**item) | {"messages": list(messages)}


def _line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


class _Folder:
    """Writes a file and checks it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "rows.jsonl"

    def check(
        self, *lines: Any, role: Role = "training_file", grader: Grader | None = None, max_rows: int = 100
    ) -> DatasetSummary:
        self.path.write_bytes(b"\n".join(line if isinstance(line, bytes) else _line(line) for line in lines))
        return check_dataset(self.path, role=role, grader=grader, max_rows=max_rows)

    def failure(self, *lines: Any, **options: Any) -> DatasetError:
        with pytest.raises(DatasetError) as caught:
            self.check(*lines, **options)
        return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> _Folder:
    return _Folder(tmp_path)


USER = {"role": "user", "content": "Wo liegt 東京?"}


@pytest.mark.parametrize(
    "row",
    [
        _row("Grüße 🎉"),
        _said({"role": "system", "content": ""}, USER),
        _said({"role": "developer", "content": "Be brief."}, USER),
        _said(USER, {"role": "assistant", "content": "There.", "weight": 0}, USER),
        _said(USER, {"role": "assistant", "tool_calls": [{"id": "c"}]}, {"role": "tool", "content": "42"}),
        _said({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        _row() | {"tools": [{"type": "function"}]},
        _row() | {"tools": None},
        _row(nested={"a": [1, 2.5, None, True]}),
    ],
)
def test_good_rows_pass(folder: _Folder, row: dict[str, Any]) -> None:
    assert folder.check(row).rows == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"not json", "The line cannot be read: not valid JSON: expecting value at character 1."),
        (b'{"messages": [', "not valid JSON"),
        (b"[1, 2]", "The line must be a JSON object, but is an array."),
        (b'"text"', "must be a JSON object, but is a string."),
        (b"17", "must be a JSON object, but is a number."),
        (b"null", "must be a JSON object, but is null."),
        (b'{"messages": []} {"messages": []}', "extra data at character 18"),
        (b"\xff\xfe{}", "The line is not UTF-8: byte 1 is 0xff."),
        ("Köln".encode("latin-1"), "not UTF-8: byte 2 is 0xf6."),
        (b'{"a": NaN}', "NaN is not a JSON number."),
        (b'{"a": 1e999}', "the number 1e999 is too large."),
        (b'{"label": 1, "label": 2}', 'the key "label" stands twice in one object.'),
        (_line(_row(a="\x00")), "A text holds a NUL character"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "stands twice"),
        (b"[" * 5_000 + b"]" * 5_000, "nested more than 64 levels deep."),
        (_line(_row(a={str(n): n for n in range(1001)})), "an object has 1,001 keys, more than 1,000."),
        (_line(_row(a="x" * 1024 * 1024)), "The line is longer than 1,048,576 bytes."),
        ({"label": "x"}, "`messages` is missing."),
        ({"mesages": [USER]}, '`messages` is missing; did you mean "mesages"?'),
        (_row() | {"messages": None}, "`messages` must be an array, but is null."),
        (_row() | {"messages": "Where?"}, "`messages` must be an array, but is a string."),
        (_row() | {"messages": []}, "`messages` is empty."),
        (_said("Where?"), "`messages[0]` must be an object, but is a string."),
        (_said({"content": "a"}), "`messages[0].role` is missing."),
        (_said({"role": 1, "content": "a"}), "`messages[0].role` must be a string, but is a number."),
        (
            _said(USER, {"role": "asistant", "content": "a"}, USER),
            '`messages[1].role` is "asistant"; did you mean "assistant"?',
        ),
        (_said({"role": "User", "content": "a"}), 'is "User"; did you mean "user"?'),
        (
            _said({"role": "bot", "content": "a"}),
            'is "bot"; roles are system, developer, user, assistant, tool.',
        ),
        (_said({"role": "user"}), "`messages[0].content` is missing."),
        (_said({"role": "user", "content": None}), "`messages[0].content` is missing."),
        (_said({"role": "user", "content": 5}), "`messages[0].content` must be a string or an array"),
        (_said({"role": "user", "content": ["a"]}), "`messages[0].content[0]` must be an object"),
        (
            _said({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            '`messages[0].content[0].type` is "image_url"; only text parts can be trained on.',
        ),
        (
            _said({"role": "user", "content": [{"type": "text"}]}),
            "`messages[0].content[0].text` must be a string.",
        ),
        (
            _said(USER, {"role": "assistant", "content": "Here."}),
            'must have the role "user" or "tool", but has "assistant"',
        ),
        (_said({"role": "system", "content": "Be brief."}), 'but has "system"'),
        (_row() | {"tools": {"type": "function"}}, "`tools` must be an array of objects."),
    ],
)
@pytest.mark.parametrize("role", ["training_file", "validation_file", "test_file"])
def test_a_bad_line_is_named_with_its_fault(folder: _Folder, line: Any, told: str, role: Role) -> None:
    error = folder.failure(_row("one"), _row("two"), line, _row("four"), role=role)
    noun = role.replace("_", " ")
    assert (error.code, error.param) == (f"invalid_{role}", role)
    assert error.message.startswith(f"The job failed due to an invalid {noun}. Line 3: ")
    assert told in error.message
    error.message.encode()


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({}, "The grader's `reference` reads `item.answer.cities[0]`, but the row has no `answer`."),
        ({"anser": 1}, 'but the row has no `answer`; did you mean "anser"?'),
        ({"answer": {}}, "reads `item.answer.cities[0]`, but the row has no such path in `answer`."),
        ({"answer": {"cities": []}}, "no such path in `answer`."),
        ({"answer": "Köln"}, "no such path in `answer`."),
    ],
)
def test_a_field_the_grader_reads_must_be_in_every_row(
    folder: _Folder, item: dict[str, Any], told: str
) -> None:
    good = _row("a", answer={"cities": [None]})
    assert folder.check(good, grader=GRADER).rows == 1
    error = folder.failure(good, _row("b", **item), grader=GRADER)
    assert error.message.startswith("The job failed due to an invalid training file. Line 2: ")
    assert told in error.message


def test_the_same_fault_on_many_lines_is_told_once(folder: _Folder) -> None:
    bad = _said({"role": "usr", "content": "a"})
    error = folder.failure(*[bad] * 7, [], bad)
    assert 'Lines 1, 2, 3 and 5 more: `messages[0].role` is "usr"' in error.message
    assert error.message.endswith("Line 8: The line must be a JSON object, but is an array.")


def test_reading_stops_after_twenty_kinds_of_fault(folder: _Folder) -> None:
    error = folder.failure(*[_said({"role": f"r{number}", "content": "a"}) for number in range(40)])
    assert "Line 20:" in error.message
    assert "Line 21:" not in error.message
    assert error.message.endswith("Reading stopped after 20 kinds of error.")


def test_one_row_can_have_several_faults(folder: _Folder) -> None:
    error = folder.failure(_said({"role": "usr"}) | {"tools": 1})
    assert error.message.count("Line 1: ") == 3


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"\xef\xbb\xbf", "begins with a byte order mark"),
        (b"\xff\xfe", "is UTF-16"),
        (b"\xfe\xff", "is UTF-16"),
    ],
)
def test_byte_order_marks_are_refused(folder: _Folder, start: bytes, told: str) -> None:
    assert told in folder.failure(start + _line(_row())).message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n"])
def test_an_empty_file_has_too_few_examples(folder: _Folder, content: bytes) -> None:
    error = folder.failure(content)
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert error.message == "Training file has 0 example(s), but must have at least 1 example"


def test_too_many_rows(folder: _Folder) -> None:
    rows = [_row(str(number)) for number in range(6)]
    assert folder.check(*rows, max_rows=6).rows == 6
    error = folder.failure(*rows, max_rows=5, role="validation_file")
    assert (error.code, error.param) == ("invalid_n_examples", "validation_file")
    assert error.message == "Validation file has more than 5 examples, the most that is allowed"
    assert (ROW_LIMITS["training_file"], ROW_LIMITS["validation_file"]) == (50_000, 1_000)


def test_line_ends_blank_lines_and_numbers(folder: _Folder) -> None:
    content = _line(_row("a")) + b"\r\n\r\n" + _line(_row("b")) + b"\n \n"
    summary = folder.check(content)
    assert (summary.rows, summary.sha256) == (2, hashlib.sha256(content).hexdigest())
    assert any("2 blank line(s)" in warning for warning in summary.warnings)
    assert "Line 5: " in folder.failure(content + b"[]").message


def test_a_line_over_the_limit_does_not_shift_the_next(folder: _Folder) -> None:
    long = b"x" * 3_500_000
    error = folder.failure(_row(), long, b"[]", _row())
    assert "Line 2: The line is longer than 1,048,576 bytes. Line 3: The line must be" in error.message
    exact = _line(_row(a=""))
    exact = _line(_row(a="x" * (1024 * 1024 - len(exact))))
    assert folder.check(exact + b"\r", exact + b"\r\n", _row()).rows == 3


def test_the_summary(folder: _Folder) -> None:
    summary = folder.check(_row("a", team="x"), _row("b", kind="y"), _row("a", team="other"))
    assert (summary.role, summary.rows, summary.duplicates) == ("training_file", 3, 1)
    assert summary.fields == ("label", "team", "kind")
    assert any("only 3 example(s)" in warning for warning in summary.warnings)
    assert any("1 example(s) repeat the prompt" in warning for warning in summary.warnings)
    assert folder.check(*[_row(str(number)) for number in range(10)]).warnings == ()


def test_overlap_counts_rows_of_the_second_file(folder: _Folder) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    train = folder.check(_row("a"), _row("b"), _row("c"))
    valid = folder.check(_said(parts), _row("a"), _row("z"), role="validation_file")
    assert (overlap(train, valid), overlap(valid, train)) == (2, 1)


def test_read_rows_gives_plain_messages_and_the_item(folder: _Folder) -> None:
    parts = [{"type": "text", "text": "Wo ist "}, {"type": "input_text", "text": "東京?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
    answer = {"role": "tool", "content": "42", "tool_call_id": "c"}
    tools = [{"type": "function"}]
    row = _said({"role": "user", "content": parts}, call, answer, n=1)
    folder.check(_row("a", label="é"), b"", row | {"tools": tools})
    first, second = read_rows(folder.path)
    assert (first.index, first.messages, first.item, first.tools) == (
        0,
        [{"role": "user", "content": "a"}],
        {"label": "é"},
        None,
    )
    assert (second.index, second.item, second.tools) == (1, {"label": "x", "n": 1}, tools)
    assert second.messages == [{"role": "user", "content": "Wo ist 東京?"}, call | {"content": ""}, answer]


@pytest.mark.parametrize(
    ("rows", "held"),
    [(0, 0), (1, 0), (2, 1), (9, 1), (19, 1), (20, 2), (160, 16), (999, 99), (1000, 100), (5000, 100)],
)
def test_split_holdout(rows: int, held: int) -> None:
    train, valid = split_holdout(rows, "seed")
    assert len(valid) == held
    assert sorted(train + valid) == list(range(rows))
    assert (train, valid) == (sorted(train), sorted(valid))
    assert split_holdout(rows, "seed") == (train, valid)


def test_the_split_depends_on_the_file_and_not_on_the_machine() -> None:
    assert split_holdout(30, "a")[1] == [0, 11, 19]
    assert len({tuple(split_holdout(30, text)[1]) for text in "abcdefgh"}) > 4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([_line(_row()), b'{"messages":[{}]}', b"{}"]), max_size=5
    )
)
def test_any_bytes_are_a_summary_or_a_dataset_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        summary = check_dataset(path, role="training_file", grader=GRADER, max_rows=3)
    except DatasetError as error:
        error.message.encode()
        return
    assert summary.rows == len(list(read_rows(path)))

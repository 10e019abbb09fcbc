"""Which probes a row gets, and whose reference is the right answer."""

from typing import Any

import pytest

from app.graders.probes import guessed_reference, probes_of
from app.graders.spec import parse_grader

EXACT: dict[str, Any] = {
    "type": "string_check",
    "input": "{{ sample.output_text }}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
ITEMS = [{"answer": "Paris"}, {"answer": "Rome"}, {"answer": "Paris"}, {}]


def _texts(reference: str | None = None, item: dict[str, Any] | None = None, prompt: str = "") -> Any:
    row = ITEMS[0] if item is None else item
    return {
        probe.name: (probe.text, probe.expected)
        for probe in probes_of(parse_grader(EXACT), row, prompt, reference, ITEMS)
    }


def test_a_row_with_a_right_answer() -> None:
    probes = _texts(prompt="Capital of France?")
    assert probes.pop("very_long")[1] == "lower"
    assert "highest score" in probes.pop("injection")[0]
    assert probes == {
        "reference": ("Paris", "best"),
        "whitespace": ("\n Paris \n", "same"),
        "upper_case": ("PARIS", "same"),
        "lower_case": ("paris", "same"),
        "truncated": ("Pa", "lower"),
        "everything": ("Paris\nRome\n", "lower"),
        "another_row": ("Rome", "lower"),
        "empty": ("", "lower"),
        "prompt_echo": ("Capital of France?", "lower"),
    }


def test_a_right_answer_without_letters_has_no_case() -> None:
    assert {"upper_case", "lower_case"}.isdisjoint(_texts(item={"answer": "42"}))


@pytest.mark.parametrize("item", [{}, {"answer": "  "}])
def test_a_row_without_a_right_answer_gets_the_others(item: dict[str, Any]) -> None:
    assert set(_texts(item=item)) == {"empty", "very_long", "injection"}


def test_a_reference_of_ones_own() -> None:
    assert _texts(reference='{"city": "{{item.answer}}"}')["reference"] == ('{"city": "Paris"}', "best")


def test_the_keys_of_a_json_answer_keep_their_case() -> None:
    probes = _texts(reference='{"City": ["{{item.answer}}", 1.50]}')
    assert probes["upper_case"] == ('{"City": ["PARIS", 1.5]}', "same")
    assert probes["lower_case"] == ('{"City": ["paris", 1.5]}', "same")
    assert {"upper_case", "lower_case"}.isdisjoint(_texts(reference='{"City":1.50}'))


@pytest.mark.parametrize(
    ("changes", "guessed"),
    [
        ({}, "{{item.answer}}"),
        ({"operation": "like"}, "{{item.answer}}"),
        ({"operation": "ne"}, None),
        ({"reference": "yes"}, None),
        ({"reference": "{{sample.output_text}}", "input": "{{item.answer}}"}, None),
        ({"input": "{{sample.output_json.city}}"}, None),
        ({"input": "{{item.answer}} {{sample.output_text}}"}, None),
    ],
)
def test_the_right_answer_is_guessed_only_where_the_whole_output_is_compared(
    changes: dict[str, Any], guessed: str | None
) -> None:
    grader = parse_grader(EXACT | changes)
    assert guessed_reference(grader) == guessed
    multi = {"type": "multi", "graders": {"a": EXACT | changes}, "calculate_output": "a"}
    assert guessed_reference(parse_grader(multi)) == guessed

"""What an inspection says of a grader: its parts by name, lines, rows, and the nearest key."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.graders.means import Means
from app.graders.python import PythonGraders
from app.graders.spec import parse_grader
from app.services.inspections import inspect
from app.services.trials import Trial
from tests.app.graders.sandboxes import LEVELS, sandbox

CHECK = {
    "type": "string_check",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
ITEMS: list[dict[str, Any]] = [{"answer": "Paris"}, {"answer": "Rome"}, {"anser": "Bonn"}]


@pytest.fixture(scope="module")
def means() -> Iterator[Means]:
    """A sandbox, and no judge: an inspection asks none."""
    with PythonGraders(sandbox(LEVELS[0]), processes=1) as python:
        yield Means(python=python)


def trial(*items: dict[str, Any], reference: str | None = None, json_expected: bool = False) -> Trial:
    """Return rows without answers."""
    return Trial({index: (item, "?") for index, item in enumerate(items)}, [], reference, json_expected)


def python(source: str) -> dict[str, Any]:
    """Return a Python grader whose `grade` returns an expression."""
    return {"type": "python", "source": f"def grade(sample, item):\n    return {source}\n"}


def test_a_row_without_the_key_is_named_with_the_nearest_one(means: Means) -> None:
    (found,) = inspect(parse_grader(CHECK), trial(*ITEMS), means)
    assert (found.name, found.rows) == ("templates", 3)
    assert found.fault is not None
    assert (found.fault.message, found.fault.item_index) == ("Row 2 has no `item.answer`.", 2)
    assert found.fault.suggestion == 'did you mean "anser"?'
    assert inspect(parse_grader(CHECK), trial(*ITEMS[:2]), means)[0].fault is None


def test_the_python_parts_of_a_multi_grader_are_told_apart(means: Means) -> None:
    multi = {
        "type": "multi",
        "graders": {
            "same": CHECK,
            "long": python("len(sample['output_text'])"),
            "odd": python("item['answr'] != ''"),
        },
        "calculate_output": "same + long + odd",
    }
    templates, long, odd = inspect(parse_grader(multi), trial(*ITEMS[:2]), means)
    assert (templates.fault, long.fault) == (None, None)
    # It is given the right answer, guessed from the part that compares with it.
    assert (long.name, long.rows) == ("python long", 2)
    assert odd.fault is not None
    assert (odd.fault.part, odd.fault.line, odd.fault.item) == ("odd", 2, {"answer": "Paris"})
    assert odd.fault.suggestion == 'did you mean "answer"?'


def test_a_right_answer_that_is_no_json_is_told_how(means: Means) -> None:
    rows = trial(*ITEMS[:1], reference="{{item.answer}}", json_expected=True)
    (found,) = inspect(parse_grader(python("1.0")), rows, means)
    assert found.fault is not None
    assert "as JSON too" in found.fault.suggestion


def test_a_source_is_parsed_without_any_row(means: Means) -> None:
    (found,) = inspect(parse_grader(python("(")), trial(), means)
    assert found.fault is not None
    assert (found.fault.line, found.fault.item) == (2, {})
    (well,) = inspect(parse_grader(python("1.0")), trial(), means)
    assert (well.fault, well.took) == (None, None)

"""The lab's form: every type's grader goes in and comes out the same, and refusals find their field."""

from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.dashboard import grader_form
from app.graders.spec import dump, parse_grader

SAID = [{"role": "system", "content": "Be strict."}, {"role": "user", "content": "{{sample.output_text}}"}]
CHECK = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "x", "operation": "eq"}
GRADERS: list[dict[str, Any]] = [
    CHECK,
    {"type": "text_similarity", "input": "a\nb", "reference": "x", "evaluation_metric": "bleu"},
    {"type": "python", "source": "def grade(sample, item):\n    return 1\n", "image_tag": "2025-05-08"},
    {"type": "score_model", "model": "m", "input": SAID, "range": [0, 10]},
    {"type": "score_model", "model": "m", "input": SAID[1:], "sampling_params": {"seed": 7}},
    {"type": "score_model", "model": "m", "input": [{"role": "developer", "content": "x"}, *SAID]},
    {"type": "score_model", "model": "m", "input": [{"role": "user", "content": ["a", "b"]}]},
    {"type": "label_model", "model": "m", "input": SAID, "labels": ["a b", "c"], "passing_labels": ["c"]},
    {"type": "multi", "graders": {"a": CHECK}, "calculate_output": "a / 2"},
    {"type": "endpoint", "url": "https://x.example", "headers": {"x-key": "1"}, "rate_limit": 60},
]


@pytest.mark.parametrize("grader", GRADERS, ids=[str(grader["type"]) for grader in GRADERS])
def test_a_saved_grader_is_shown_in_its_form_and_comes_back_the_same(grader: dict[str, Any]) -> None:
    content = dump(parse_grader(grader | {"name": "mine"}, for_training=False))
    kind, values = grader_form.values_of(content)
    assert kind == grader["type"]
    assert grader_form.content_of(kind, values) == content
    assert parse_grader(grader_form.content_of(kind, values), for_training=False)


def test_what_a_form_cannot_hold_is_shown_as_json() -> None:
    content = dump(parse_grader(GRADERS[7] | {"name": "n", "labels": [" padded", "c"]}, for_training=False))
    kind, values = grader_form.values_of(content)
    assert kind == grader_form.JSON
    assert grader_form.content_of(kind, values) == content


@pytest.mark.parametrize("kind", [kind for kind in grader_form.TYPES if kind != grader_form.JSON])
def test_what_a_fresh_form_holds_is_a_grader(kind: str) -> None:
    values = grader_form.first(kind) | {"model": "m", "name": "mine"}
    values["url"] = values["url"] and "https://x.example"
    grader = parse_grader(grader_form.content_of(kind, values))
    assert (grader.type, grader.name) == (kind, "mine")


def test_a_browsers_line_ends_change_nothing() -> None:
    values = grader_form.first("python") | {"source": "def grade(s, i):\r\n    return 1\r\n"}
    assert grader_form.content_of("python", values)["source"] == "def grade(s, i):\n    return 1\n"


def test_a_new_name_is_no_new_content() -> None:
    kind, values = grader_form.values_of({"type": "python", "name": "inner", "source": "x"})
    assert grader_form.content_of(kind, values | {"name": "another"})["name"] == "inner"


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("json", {"whole": "[1]"}, "whole"),
        ("json", {"whole": "{"}, "whole"),
        ("multi", {"graders": "{"}, "graders"),
        ("python", {"more": "[]"}, "more"),
        ("score_model", {"messages": "{{"}, "messages"),
    ],
)
def test_text_that_is_no_json_is_refused_at_its_field(kind: str, changes: dict[str, str], field: str) -> None:
    with pytest.raises(grader_form.Refused) as refused:
        grader_form.content_of(kind, grader_form.first(kind) | changes)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("kind", "param", "field"),
    [
        ("python", "grader.source", "source"),
        ("python", "grader.image_tag", "more"),
        ("python", "name", "name"),
        ("multi", "grader.graders.a.input", "graders"),
        ("multi", "grader.calculate_output", "calculate_output"),
        ("score_model", "grader.range[0]", "low"),
        ("score_model", "grader.input[0].content", "prompt"),
        ("score_model", "grader.model", "model"),
        ("json", "grader.graders.a.input", "whole"),
        ("string_check", "grader", "form"),
    ],
)
def test_a_refusals_param_has_a_field(kind: str, param: str, field: str) -> None:
    assert grader_form.field_of(kind, InvalidRequest("no", param=param)) == field

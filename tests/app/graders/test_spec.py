"""Graders of the wire: what is normalised, what is refused at which `param`, what a grader reads."""

from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.graders.spec import dump, item_fields, leaves, parse_grader, uses_output_json

CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.label}}",
    "operation": "eq",
}
SIMILAR: dict[str, Any] = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_json.text}}",
    "reference": "{{ item.answer.text }}",
    "evaluation_metric": "rouge_l",
}
MULTI: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": CHECK, "close": SIMILAR},
    "calculate_output": "0.5 * exact + 0.5 * close",
}


SCORE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "gpt-judge",
    "input": [
        {"role": "system", "content": "Compare with {{item.label}}."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "{{ sample.output_text }}"}],
            "type": "message",
        },
    ],
    "range": [0, 10],
    "sampling_params": {"seed": 1, "max_completions_tokens": 64, "reasoning_effort": "low"},
}
LABEL: dict[str, Any] = {
    "type": "label_model",
    "name": "tone",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "{{sample.output_json.tone}}"}],
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
}
ENDPOINT: dict[str, Any] = {
    "type": "endpoint",
    "name": "ours",
    "url": "https://grader.example.com/score",
    "headers": {"authorization": "Bearer x"},
    "rate_limit": 60,
}


def _without(grader: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in grader.items() if key not in keys}


SAID = {"type": "input_text", "text": "{{sample.output_text}}"}
PICTURE = {"type": "input_image", "image_url": "https://example.com/{{item.label}}.png"}


def _asking(content: object, role: str = "user") -> dict[str, Any]:
    return SCORE | {"input": [{"role": role, "content": content}]}


def _multi(part: object, formula: str = "a") -> dict[str, Any]:
    return {"type": "multi", "graders": {"a": part}, "calculate_output": formula}


@pytest.mark.parametrize("wire", [CHECK, SIMILAR, MULTI, SCORE, LABEL, ENDPOINT])
def test_a_complete_grader_is_echoed_as_it_came(wire: dict[str, Any]) -> None:
    grader = parse_grader(wire)
    assert dump(grader) == wire
    assert list(dump(grader)) == list(wire)
    assert parse_grader(dump(grader)) == grader


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (_without(CHECK, "name"), {"name": "string_check"}),
        (CHECK | {"name": None}, {"name": "string_check"}),
        (CHECK | {"name": ""}, {"name": "string_check"}),
        (CHECK | {"operation": "neq"}, {"operation": "ne"}),
        (CHECK | {"pass_threshold": 0.5}, {}),
        (SIMILAR | {"pass_threshold": None}, {}),
        (_without(MULTI, "name"), {"name": "multi"}),
        (MULTI | {"pass_threshold": 1}, {}),
        (MULTI | {"graders": [CHECK, SIMILAR]}, {}),
        (
            MULTI | {"graders": {"exact": _without(CHECK, "name"), "close": SIMILAR}},
            {"graders": {"exact": CHECK | {"name": "exact"}, "close": SIMILAR}},
        ),
        (
            MULTI
            | {"graders": {"exact": CHECK | {"operation": "neq", "pass_threshold": 1}, "close": SIMILAR}},
            {"graders": {"exact": CHECK | {"operation": "ne"}, "close": SIMILAR}},
        ),
        (MULTI | {"graders": CHECK, "calculate_output": "exact"}, {"graders": {"exact": CHECK}}),
        (SCORE | {"pass_threshold": 0.5, "range": None}, {"range": ...}),
        (SCORE | {"sampling_params": {"max_tokens": 5}}, {"sampling_params": {"max_completions_tokens": 5}}),
        (_without(ENDPOINT, "name", "headers", "rate_limit"), {"name": "endpoint"}),
        (_asking("{{sample.output_text}}"), {}),
        (_asking({"type": "text", "text": "{{sample.output_text}}"}), _asking([SAID])),
        (_asking(["{{sample.output_text}}", PICTURE | {"file_id": None}]), _asking([SAID, PICTURE])),
    ],
)
def test_leniencies_end_in_the_normal_form(given: dict[str, Any], changed: dict[str, Any]) -> None:
    normal = (
        _without(given, "pass_threshold") | {"graders": MULTI["graders"]} if "graders" in given else given
    )
    gone = [key for key, value in changed.items() if value is ...]
    assert dump(parse_grader(given)) == _without(normal | changed, "pass_threshold", *gone)


@pytest.mark.parametrize(
    ("wire", "param", "code", "told"),
    [
        (None, "", "invalid_type", "expected an object, but got null instead"),
        ("python", "", "invalid_type", "expected an object, but got a string instead"),
        ([CHECK], "", "invalid_type", "but got an array"),
        ({}, ".type", "missing_required_parameter", "Missing required parameter: 'P.type'."),
        ({"type": 3}, ".type", "invalid_type", "expected a string, but got an integer"),
        ({"type": "regex"}, ".type", "invalid_value", "'string_check', 'text_similarity', "),
        ({"type": "python"}, ".source", "missing_required_parameter", "Missing"),
        ({"type": "saved", "id": "grader_x"}, ".type", "invalid_value", "saved grader"),
        (_without(CHECK, "operation"), ".operation", "missing_required_parameter", "Missing required"),
        (_without(CHECK, "input"), ".input", "missing_required_parameter", "Missing required"),
        (CHECK | {"operation": "equals"}, ".operation", "invalid_value", "'eq', 'ne', 'like', and 'ilike'"),
        (CHECK | {"operation": 1}, ".operation", "invalid_type", "but got an integer"),
        (CHECK | {"operation": None}, ".operation", "invalid_type", "but got null"),
        (CHECK | {"reference": 5.5}, ".reference", "invalid_type", "but got a decimal"),
        (CHECK | {"reference": True}, ".reference", "invalid_type", "but got a boolean"),
        (CHECK | {"name": ["a"]}, ".name", "invalid_type", "but got an array"),
        (CHECK | {"weight": 1}, ".weight", "unknown_parameter", "Unknown parameter: 'P.weight'."),
        (CHECK | {"input": "{{ sample.output"}, ".input", "invalid_value", "never closed"),
        (CHECK | {"reference": "{{ label }}"}, ".reference", "invalid_value", "must begin with"),
        (CHECK | {"reference": "{{ }}"}, ".reference", "invalid_value", "names nothing"),
        (CHECK | {"input": "{{item.a}}"}, "", "invalid_value", "no template names the answer"),
        (CHECK | {"reference": "{{item.messages}}"}, ".reference", "invalid_value", "is the prompt"),
        (SIMILAR | {"evaluation_metric": "cosine"}, ".evaluation_metric", "unsupported_value", "embedding"),
        (SIMILAR | {"evaluation_metric": "rouge_6"}, ".evaluation_metric", "invalid_value", "'fuzzy_match'"),
        (_without(MULTI, "graders"), ".graders", "missing_required_parameter", "Missing"),
        (_without(MULTI, "calculate_output"), ".calculate_output", "missing_required_parameter", "Missing"),
        (MULTI | {"graders": {}}, ".graders", "invalid_value", "at least one"),
        (MULTI | {"graders": []}, ".graders", "invalid_value", "at least one"),
        (MULTI | {"graders": "exact"}, ".graders", "invalid_type", "but got a string"),
        (MULTI | {"graders": [CHECK, CHECK]}, ".graders[1].name", "invalid_value", "two graders"),
        (MULTI | {"graders": [{"type": "x"}]}, ".graders[0].name", "missing_required_parameter", "Missing"),
        (MULTI | {"graders": [CHECK, 7]}, ".graders[1]", "invalid_type", "but got an integer"),
        (MULTI | {"graders": {"my check": CHECK}}, ".graders", "invalid_value", "'my check' cannot stand"),
        (_multi(None), ".graders.a", "invalid_type", "but got null"),
        (_multi(MULTI), ".graders.a.type", "invalid_value", "cannot hold another multi grader"),
        (_multi({"type": "python"}), ".graders.a.source", "missing_required_parameter", "Missing"),
        (
            _multi({"type": "regex"}),
            ".graders.a.type",
            "invalid_value",
            "'string_check', 'text_similarity', ",
        ),
        (
            _multi(_without(CHECK, "reference")),
            ".graders.a.reference",
            "missing_required_parameter",
            "Missing",
        ),
        (_multi(CHECK | {"extra": 1}), ".graders.a.extra", "unknown_parameter", "Unknown"),
        (_multi(CHECK | {"input": "{{x}}"}), ".graders.a.input", "invalid_value", "must begin with"),
        (_without(SCORE, "model"), ".model", "missing_required_parameter", "Missing"),
        (SCORE | {"model": ""}, ".model", "invalid_value", "at least 1 character"),
        (_without(SCORE, "input"), ".input", "missing_required_parameter", "Missing"),
        (SCORE | {"input": []}, ".input", "invalid_value", "at least 1 item"),
        (SCORE | {"input": "hi"}, ".input", "invalid_type", "but got a string"),
        (SCORE | {"input": ["hi"]}, ".input[0]", "invalid_type", "but got a string"),
        (SCORE | {"input": [{"role": "user"}]}, ".input[0].content", "missing_required_parameter", "Missing"),
        (_asking("x", role="tool"), ".input[0].role", "invalid_value", "'developer'"),
        (_asking(5), ".input[0].content", "invalid_type", "but got an integer"),
        (_asking([5]), ".input[0].content[0]", "invalid_type", "but got an integer"),
        (_asking([{"text": "x"}]), ".input[0].content[0].type", "missing_required_parameter", "Missing"),
        (_asking([{"type": "video"}]), ".input[0].content[0].type", "invalid_value", "'input_text'"),
        (
            _asking([{"type": "input_text"}]),
            ".input[0].content[0].text",
            "missing_required_parameter",
            "Miss",
        ),
        (_asking([SAID | {"x": 1}]), ".input[0].content[0].x", "unknown_parameter", "Unknown"),
        (
            _asking([PICTURE | {"file_id": "f"}]),
            ".input[0].content[0].file_id",
            "unsupported_value",
            "image_url",
        ),
        (_asking([SAID, PICTURE], role="system"), ".input[0].content", "invalid_value", "text alone"),
        (_asking("{{ label }}"), ".input[0].content", "invalid_value", "must begin with"),
        (
            _asking([{"type": "input_text", "text": "{{x}}"}]),
            ".input[0].content[0].text",
            "invalid_value",
            "must",
        ),
        (_asking("{{item.messages}}"), ".input[0].content", "invalid_value", "is the prompt"),
        (_asking("rate it"), "", "invalid_value", "no template names the answer"),
        (SCORE | {"range": [1]}, ".range", "invalid_value", "at least 2 items"),
        (SCORE | {"range": [1, 1]}, ".range", "invalid_value", "below the upper one"),
        (SCORE | {"range": "0-1"}, ".range", "invalid_type", "expected an array, but got a string"),
        (SCORE | {"range": ["a", 1]}, ".range[0]", "invalid_type", "expected a number, but got a string"),
        (
            SCORE | {"sampling_params": {"top_p": 2}},
            ".sampling_params.top_p",
            "invalid_value",
            "less than or",
        ),
        (SCORE | {"sampling_params": {"seed": "x"}}, ".sampling_params.seed", "invalid_type", "an integer"),
        (SCORE | {"sampling_params": {"n": 2}}, ".sampling_params.n", "unknown_parameter", "Unknown"),
        (LABEL | {"labels": []}, ".labels", "invalid_value", "at least 1 item"),
        (LABEL | {"labels": ["a", "a"], "passing_labels": ["a"]}, ".labels", "invalid_value", "twice"),
        (
            LABEL | {"passing_labels": ["kind", "nice"]},
            ".passing_labels[1]",
            "invalid_value",
            "'kind' and 'rude'",
        ),
        (_without(ENDPOINT, "url"), ".url", "missing_required_parameter", "Missing"),
        (ENDPOINT | {"headers": {"Host": "x"}}, ".headers", "invalid_value", "'Host' is no header"),
        (ENDPOINT | {"headers": {"a b": "x"}}, ".headers", "invalid_value", "'a b' is no header"),
        (ENDPOINT | {"headers": {"a": "x\r\nb: c"}}, ".headers.a", "invalid_value", "one line"),
        (ENDPOINT | {"headers": {"a": 1}}, ".headers.a", "invalid_type", "expected a string"),
        (ENDPOINT | {"rate_limit": 0}, ".rate_limit", "invalid_value", "greater than or equal to 1"),
        (_multi(SCORE | {"range": [1, 0]}), ".graders.a.range", "invalid_value", "below the upper one"),
        (_multi(CHECK, "a +"), ".calculate_output", "invalid_value", "ends at character 4"),
        (_multi(CHECK, "2 * b + a"), ".calculate_output", "invalid_value", "`b` at character 5 is no key"),
        (_multi(CHECK, "1"), ".calculate_output", "invalid_value", "names none of its graders"),
        (_multi(CHECK, ""), ".calculate_output", "invalid_value", "ends at character 1"),
    ],
)
def test_refusals_name_the_parameter(wire: object, param: str, code: str, told: str) -> None:
    root = "method.reinforcement.grader"
    with pytest.raises(InvalidRequest) as caught:
        parse_grader(wire, param=root)
    error = caught.value
    assert (error.status, error.type, error.code, error.param) == (
        400,
        "invalid_request_error",
        code,
        root + param,
    )
    assert told.replace("'P.", f"'{root}.") in error.message


def test_a_grader_that_ignores_the_answer_is_fine_outside_training() -> None:
    wire = CHECK | {"input": "{{ item.messages }}"}
    assert dump(parse_grader(wire, for_training=False)) == wire


def test_the_request_is_left_as_it_was() -> None:
    wire = {"type": "multi", "graders": [dict(CHECK, pass_threshold=1)], "calculate_output": "exact"}
    before = repr(wire)
    parse_grader(wire)
    assert repr(wire) == before


def test_what_a_grader_reads() -> None:
    both = CHECK | {"reference": "{{item.label}} {{ item.answer.text }}{{item.label}}"}
    grader = parse_grader(MULTI | {"graders": {"exact": both, "close": SIMILAR}})
    assert [(field.path, field.places) for field in item_fields(grader)] == [
        ("item.label", ("graders.exact.reference",)),
        ("item.answer.text", ("graders.exact.reference", "graders.close.reference")),
    ]
    assert [field.places for field in item_fields(parse_grader(CHECK))] == [("reference",)]
    assert list(leaves(grader)) == ["exact", "close"]
    assert list(leaves(parse_grader(CHECK))) == [None]


@pytest.mark.parametrize(
    ("wire", "asks"),
    [(CHECK, False), (SIMILAR, True), (MULTI, True), (SCORE, False), (LABEL, True), (ENDPOINT, False)],
)
def test_uses_output_json(wire: dict[str, Any], asks: bool) -> None:
    assert uses_output_json(parse_grader(wire)) is asks

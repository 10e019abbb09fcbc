"""The single door: rewards, whose fault a failure is, and that nothing ever raises."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.graders.grade import grade
from app.graders.result import Grade, GradeErrors
from app.graders.spec import Grader, parse_grader

WIRE_ERROR_KEYS = {
    "formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
    "invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_server_error_type",
    "python_grader_runtime_error", "python_grader_runtime_error_details", "model_grader_server_error",
    "model_grader_refusal_error", "model_grader_parse_error", "model_grader_server_error_details",
}  # fmt: skip


def _check(
    input: str = "{{sample.output_text}}", reference: str = "{{item.label}}", operation: str = "eq"
) -> Any:
    return {"type": "string_check", "input": input, "reference": reference, "operation": operation}


def _multi(formula: str, **graders: Any) -> Grader:
    return parse_grader(
        {"type": "multi", "graders": graders, "calculate_output": formula}, for_training=False
    )


def _run(grader: Any, text: str, item: dict[str, Any] | None = None, json_expected: bool = False) -> Grade:
    parsed = parse_grader(grader, for_training=False) if isinstance(grader, dict) else grader
    return grade(
        parsed,
        item={"label": "Köln"} if item is None else item,
        output_text=text,
        json_expected=json_expected,
    )


def _flags(done: Grade) -> list[str]:
    return [key for key, value in done.errors.to_dict().items() if value]


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [
        ("eq", "Köln", 1.0),
        ("eq", "köln", 0.0),
        ("eq", "Köln ", 0.0),
        ("eq", "Ko\u0308ln", 0.0),
        ("ne", "Köln", 0.0),
        ("ne", "", 1.0),
        ("like", "nach Köln!", 1.0),
        ("like", "nach köln!", 0.0),
        ("like", "Kö", 0.0),
        ("ilike", "NACH KÖLN!", 1.0),
        ("ilike", "Bonn", 0.0),
    ],
)
def test_string_check(operation: str, text: str, reward: float) -> None:
    done = _run(_check(operation=operation), text)
    assert (done.reward, done.fault, done.message) == (reward, "none", None)
    assert done.errors == GradeErrors()


def test_percent_is_no_wildcard() -> None:
    assert _run(_check(reference="K%n", operation="like"), "Köln").reward == 0.0
    assert _run(_check(reference="STRASSE", operation="ilike"), "Hauptstraße 1").reward == 1.0


def test_text_similarity_renders_both_sides() -> None:
    similar = {
        "type": "text_similarity",
        "input": "{{sample.output_text}}",
        "reference": "{{item.label}} am Rhein",
        "evaluation_metric": "gleu",
    }
    assert _run(similar, "Köln am Rhein").reward == 1.0
    assert _run(similar, "Köln am Main").reward == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("text", "json_expected", "input", "reward", "fault"),
    [
        ('{"city":"Köln"}', True, "{{sample.output_json.city}}", 1.0, "none"),
        ('{"city":"Köln"}', False, "{{sample.output_json.city}}", 1.0, "none"),
        ('\n {"city":"Köln"} ', False, "{{sample.output_json.city}}", 1.0, "none"),
        ("Köln", False, "{{sample.output_text}}", 1.0, "none"),
        ("Köln", True, "{{sample.output_text}}", 0.0, "answer"),
        ("Köln", False, "{{sample.output_json.city}}", 0.0, "answer"),
        ('{"city":"Kö', False, "{{sample.output_json.city}}", 0.0, "answer"),
        ('{"city":NaN}', False, "{{sample.output_json.city}}", 0.0, "answer"),
        ('{"town":"Köln"}', True, "{{sample.output_json.city}}", 0.0, "answer"),
        ('"Köln"', True, "{{sample.output_json.city}}", 0.0, "answer"),
        ('"Köln"', True, "{{sample.output_json}}", 1.0, "none"),
        ("Köln", False, "{{sample.output_tools[0].function.name}}", 0.0, "answer"),
        ("Köln", False, "{{sample.choices[0].message.content}}", 1.0, "none"),
        ("[" * 100_000, False, "{{sample.output_json}}", 0.0, "answer"),
    ],
)
def test_an_answer_that_breaks_its_contract_earns_a_real_zero(
    text: str, json_expected: bool, input: str, reward: float, fault: str
) -> None:
    done = _run(_check(input), text, json_expected=json_expected)
    assert (done.reward, done.fault) == (reward, fault)
    assert _flags(done) == (["sample_parse_error"] if fault == "answer" else [])
    assert (done.message is None) == (fault == "none")


def test_a_path_the_item_lacks_is_the_graders_error_and_missing() -> None:
    done = _run(_check(reference="{{item.answer.city}}"), "Köln")
    assert (done.reward, done.fault, _flags(done)) == (None, "grader", ["invalid_variable_error"])
    assert "item.answer.city" in str(done.message)


def test_tools_reach_the_template() -> None:
    calls = [{"type": "function", "function": {"name": "lookup", "arguments": "{}"}}]
    grader = parse_grader(_check("{{sample.output_tools[0].function.name}}", "lookup"))
    assert grade(grader, item={}, output_text="", json_expected=False, output_tools=calls).reward == 1.0


def test_multi_joins_by_the_formula_and_keeps_the_parts() -> None:
    grader = _multi("0.75 * exact + 0.25 * near", exact=_check(), near=_check(operation="ilike"))
    done = _run(grader, "köln am Rhein")
    assert done.reward == 0.25
    assert done.parts == done.scores == {"exact": 0.0, "near": 1.0}
    assert done.seconds >= sum(part.seconds for part in done.part_grades.values()) >= 0


def test_one_missing_part_makes_the_whole_missing() -> None:
    grader = _multi("exact + other", exact=_check(), other=_check(reference="{{item.gone}}"))
    done = _run(grader, "Köln")
    assert (done.reward, done.fault, _flags(done)) == (None, "grader", ["invalid_variable_error"])
    assert done.parts == {"exact": 1.0, "other": None}
    assert done.scores == {"exact": 1.0}
    assert str(done.message).startswith("other: ")


def test_a_broken_answer_gains_nothing_from_a_formula_that_subtracts() -> None:
    grader = _multi("1 - wrong", wrong=_check("{{sample.output_json.city}}", "Bonn"))
    assert _run(grader, '{"city":"Köln"}').reward == 1.0
    broken = _run(grader, '{"town":"Köln"}')
    assert (broken.reward, broken.fault, broken.parts) == (0.0, "answer", {"wrong": 0.0})


def test_a_broken_answer_outranks_a_missing_part() -> None:
    grader = _multi("a + b", a=_check("{{sample.output_json.x}}"), b=_check(reference="{{item.gone}}"))
    done = _run(grader, "{}")
    assert (done.reward, done.fault) == (0.0, "answer")
    assert _flags(done) == ["sample_parse_error", "invalid_variable_error"]


def test_a_formula_without_a_value_is_missing() -> None:
    done = _run(_multi("1 / exact", exact=_check()), "Bonn")
    assert (done.reward, done.fault, _flags(done)) == (None, "grader", ["formula_parse_error"])
    assert "character 3" in str(done.message)
    assert done.parts == {"exact": 0.0}


def test_an_exception_becomes_a_flag() -> None:
    class Broken(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise RuntimeError("disk on fire \ud800\x00")

    done = grade(parse_grader(_check()), item=Broken(), output_text="x", json_expected=False)
    assert (done.reward, done.fault, _flags(done)) == (None, "grader", ["other_error"])
    assert done.message == "RuntimeError: disk on fire ?\ufffd"


def test_all_fourteen_error_keys_stand_on_the_wire() -> None:
    assert set(GradeErrors().to_dict()) == WIRE_ERROR_KEYS
    joined = GradeErrors(other_error=True).joined(GradeErrors(model_grader_server_error_details="x"))
    assert joined == GradeErrors(other_error=True, model_grader_server_error_details="x")


_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
_SAMPLE_PATHS = ["output_text", "output_json", "output_json.a[0]", "choices", "output_tools[0]"]
_ITEM_PATHS = ["a", "a.b", "a[1]", "missing"]
_PATHS = st.sampled_from([f"sample.{p}" for p in _SAMPLE_PATHS] + [f"item.{p}" for p in _ITEM_PATHS])
_TEMPLATES = st.lists(_PATHS.map("{{{{ {} }}}}".format) | st.just("plain"), max_size=3).map(" ".join)
_METRICS = ["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_5", "rouge_l"]
_LEAVES = st.one_of(
    st.builds(_check, _TEMPLATES, _TEMPLATES, st.sampled_from(["eq", "ne", "like", "ilike"])),
    st.builds(
        lambda text, reference, metric: {
            "type": "text_similarity", "input": text, "reference": reference, "evaluation_metric": metric
        },
        _TEMPLATES, _TEMPLATES, st.sampled_from(_METRICS),
    ),
)  # fmt: skip
_FORMULAS = st.sampled_from(["a + b", "a / b", "log(a) - b", "a ^ -b", "sqrt(a - b)", "exp(999 * a) * b"])
_GRADERS = _LEAVES | st.builds(
    lambda formula, a, b: {"type": "multi", "graders": {"a": a, "b": b}, "calculate_output": formula},
    _FORMULAS, _LEAVES, _LEAVES,
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=6,
)
_ANSWERS = _TEXT | st.sampled_from(["{}", '{"a":[1]}', '{"a":["\\ud800"]}', "[]", "NaN", "1e999"])


@settings(deadline=None)
@given(_GRADERS, st.dictionaries(st.just("a"), _JSON), _ANSWERS, st.booleans())
def test_never_raises_and_is_consistent(
    wire: Any, item: dict[str, Any], text: str, json_expected: bool
) -> None:
    done = grade(
        parse_grader(wire, for_training=False), item=item, output_text=text, json_expected=json_expected
    )
    if done.fault == "none":
        assert done.reward is not None
        assert _flags(done) == []
    else:
        assert done.reward == (0.0 if done.fault == "answer" else None)
        assert _flags(done)
        assert done.message is not None
        done.message.encode()

"""Formulas: precedence by hand-worked values, positions in errors, and limits."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.graders.formula import FormulaError, compile_formula

REWARDS = {"a": 0.5, "b": 0.25, "one": 1.0, "zero": 0.0, "größe": 2.0, "max": 7.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0),
        ("a", 0.5),
        ("0.5 * a + 0.5 * b", 0.375),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("16 / 4 / 2", 2),
        ("2 ^ 3 ^ 2", 512),
        ("(2 ^ 3) ^ 2", 64),
        ("-2 ^ 2", -4),
        ("(-2) ^ 2", 4),
        ("2 ^ -1", 0.5),
        ("2 * -3", -6),
        ("--2", 2),
        ("1 - -1", 2),
        ("-a ^ 2 * 4", -1),
        ("2*3^2", 18),
        (".5 + 1. + 1e-1 + 2E+1", 21.6),
        ("min(a, b, 1)", 0.25),
        ("max(a)", 0.5),
        ("max + 1", 8),
        ("max(max, 9)", 9),
        ("abs(-3) + floor(1.7) + ceil(1.2)", 6),
        ("floor(-0.5)", -1),
        ("sqrt(16) + exp(0)", 5),
        ("log(exp(2))", 2),
        ("größe + one", 3),
        ("  a\n+\tb ", 0.75),
        ("+".join(["one"] * 2500), 2500),
    ],
)
def test_value(text: str, value: float) -> None:
    assert compile_formula(text).evaluate(REWARDS) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "ends at character 1"),
        ("   ", "ends at character 4"),
        ("a +", "ends at character 4"),
        ("a + + b", r"`\+` at character 5"),
        ("a b", "`b` at character 3 stands where an operator"),
        ("(a + b", r"ends at character 7, where `\)`"),
        ("a)", r"`\)` at character 2"),
        ("a ** b", r"`\*` at character 4"),
        ("a % b", "`%` at character 3 has no meaning"),
        ("a; import os", "`;` at character 2"),
        ("'x'", "`'` at character 1"),
        ("a.real", r"`\.` at character 2"),
        ("pow(a, 2)", "`pow` at character 1 is not a function"),
        ("__import__(a)", "is not a function"),
        ("sqrt(a, b)", "takes one argument, but got 2"),
        ("min()", r"`\)` at character 5"),
        ("1e999", "number at character 1 is too large"),
        ("(" * 100 + "a" + ")" * 100, "nested more than 64 deep"),
        ("-" * 100 + "a", "nested more than 64 deep"),
        ("^".join(["a"] * 100), "nested more than 64 deep"),
        ("min(" * 100 + "a" + ")" * 100, "nested more than 64 deep"),
        ("a+" * 6000 + "a", "12,001 characters"),
    ],
)
def test_refuses_naming_the_position(text: str, told: str) -> None:
    with pytest.raises(FormulaError, match=told):
        compile_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "one / zero",
        "log(zero)",
        "sqrt(-one)",
        "exp(1000)",
        "9^999",
        "2^1001",
        "(-one)^0.5",
        "zero^-1",
        "1e308*10",
    ],
)
def test_no_finite_value_is_an_error_with_a_position(text: str) -> None:
    with pytest.raises(FormulaError, match="at character"):
        compile_formula(text).evaluate(REWARDS)


def test_names_are_what_it_reads_and_not_its_functions() -> None:
    formula = compile_formula("min(a, 2) + max * größe + a")
    assert formula.names == {"a", "max", "größe"}
    assert formula.position_of("max") == 13


_NUMBERS = st.floats(0.1, 9, allow_nan=False).map(lambda number: f"{number:.3f}")
_SUMS = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda text: f"-{text}"),
        st.tuples(inner, inner).map(lambda t: f"min({t[0]}, {t[1]})"),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(_SUMS)
def test_agrees_with_python_arithmetic(text: str) -> None:
    try:
        expected = eval(text, {"min": min})  # noqa: S307
    except ZeroDivisionError:
        expected = math.nan
    try:
        value = compile_formula(text).evaluate({})
    except FormulaError:
        value = math.nan
    assert value == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(st.text(alphabet="ab01.+-*/^(), minsqrtlogexp\n", max_size=60))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        value = compile_formula(text).evaluate(dict.fromkeys(compile_formula(text).names, 0.5))
    except FormulaError:
        return
    assert math.isfinite(value)

"""`calculate_output` of a multi grader: a small parser and a stack machine. Nothing here can run Python code.

expression = term {("+" | "-") term}
term = factor {("*" | "/") factor}
factor = "-" factor | power
power = atom ["^" factor]
atom = number | name | name "(" expression {"," expression} ")" | "(" expression ")"
So 2^3^2 = 512 and -2^2 = -4.
`spec` compiles each formula when a grader is created, `grade` evaluates it. `log` is the natural logarithm.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

MAX_LENGTH = 10_000
MAX_DEPTH = 64
MAX_EXPONENT = 1000.0

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<mark>[-+*/^(),]))"
)


class FormulaError(ValueError):
    """A formula that cannot be read, or that has no finite value for these rewards."""


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"the exponent {exponent:g} is beyond {MAX_EXPONENT:g}")
    return math.pow(base, exponent)


_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": _power,
}
_ONE_ARGUMENT: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY_ARGUMENTS: dict[str, Callable[..., float]] = {"min": min, "max": max}
FUNCTIONS = frozenset(_ONE_ARGUMENT) | frozenset(_MANY_ARGUMENTS)


@dataclass(frozen=True, slots=True)
class _Op:
    """One instruction: push a number, push a reward by name, or apply `run` to the top `arity` values."""

    text: str
    position: int
    number: float | None = None
    run: Callable[..., float] | None = None
    arity: int = 0


@dataclass(frozen=True, slots=True)
class Formula:
    """A compiled formula, in postfix order: evaluating needs no recursion, however long the sum."""

    code: tuple[_Op, ...]

    @property
    def names(self) -> frozenset[str]:
        """Return the rewards the formula reads."""
        return frozenset(op.text for op in self.code if op.run is None and op.number is None)

    def position_of(self, name: str) -> int:
        """Return the character (from 1) where a name first stands."""
        return min(op.position for op in self.code if op.text == name and op.run is None)

    def evaluate(self, rewards: Mapping[str, float]) -> float:
        """Return the formula's value.

        Raises: FormulaError, for a division by zero, a root or logarithm outside its domain, an overflow.
        """
        stack: list[float] = []
        for op in self.code:
            if op.number is not None:
                stack.append(op.number)
            elif op.run is None:
                stack.append(float(rewards[op.text]))
            else:
                arguments = stack[-op.arity :]
                del stack[-op.arity :]
                stack.append(_apply(op, arguments))
        return stack.pop()


def _apply(op: _Op, arguments: list[float]) -> float:
    assert op.run is not None
    try:
        value = float(op.run(*arguments))
    except (ArithmeticError, ValueError) as error:
        given = ", ".join(f"{argument:g}" for argument in arguments)
        raise FormulaError(f"`{op.text}` at character {op.position} fails for {given}: {error}") from None
    if not math.isfinite(value):
        raise FormulaError(f"`{op.text}` at character {op.position} is not a finite number")
    return value


@lru_cache(maxsize=256)
def compile_formula(text: str) -> Formula:
    """Compile a formula.

    Raises: FormulaError, naming the character where reading stopped.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"the formula has {len(text):,} characters, more than {MAX_LENGTH:,}")
    parser = _Parser(text)
    parser.expression(0)
    parser.expect_end()
    return Formula(tuple(parser.code))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def _tokens(text: str) -> list[_Token]:
    found, position, end = [], 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            raise FormulaError(f"`{rest[0]}` at character {len(text) - len(rest) + 1} has no meaning here")
        kind = match.lastgroup or "mark"
        found.append(_Token(kind, match.group(kind), match.start(kind) + 1))
        position = match.end()
    return [*found, _Token("end", "", len(text) + 1)]


class _Parser:
    """Recursive descent; every method leaves its operand on the machine's stack."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self.code: list[_Op] = []

    def expression(self, depth: int) -> None:
        self._chain("+-", self._term, depth)

    def expect_end(self) -> None:
        if self._peek.kind != "end":
            raise self._unexpected("an operator")

    def _term(self, depth: int) -> None:
        self._chain("*/", self._factor, depth)

    def _chain(self, marks: str, operand: Callable[[int], None], depth: int) -> None:
        operand(depth)
        while self._peek.kind == "mark" and self._peek.text in marks:
            operator = self._take()
            operand(depth)
            self._emit(operator, _OPERATORS[operator.text], 2)

    def _factor(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise FormulaError(f"nested more than {MAX_DEPTH} deep at character {self._peek.position}")
        if self._at("-"):
            minus = self._take()
            self._factor(depth + 1)
            self._emit(minus, lambda value: -value, 1)
            return
        self._atom(depth)
        if self._at("^"):
            operator = self._take()
            self._factor(depth + 1)
            self._emit(operator, _power, 2)

    def _atom(self, depth: int) -> None:
        token = self._peek
        if token.kind == "number":
            self._take()
            number = float(token.text)
            if not math.isfinite(number):
                raise FormulaError(f"the number at character {token.position} is too large")
            self.code.append(_Op(token.text, token.position, number=number))
        elif token.kind == "name":
            self._take()
            if self._at("("):
                self._call(token, depth)
            else:
                self.code.append(_Op(token.text, token.position))
        elif self._at("("):
            self._take()
            self.expression(depth + 1)
            self._close()
        else:
            raise self._unexpected("a number, a name or `(`")

    def _call(self, name: _Token, depth: int) -> None:
        if name.text not in FUNCTIONS:
            known = ", ".join(sorted(FUNCTIONS))
            raise FormulaError(
                f"`{name.text}` at character {name.position} is not a function; there are {known}"
            )
        self._take()
        self.expression(depth + 1)
        arity = 1
        while self._at(","):
            self._take()
            self.expression(depth + 1)
            arity += 1
        self._close()
        if name.text in _MANY_ARGUMENTS:
            # Python's min and max of a single number want a list.
            many = _MANY_ARGUMENTS[name.text]
            self._emit(name, lambda *values: many(values), arity)
        elif arity == 1:
            self._emit(name, _ONE_ARGUMENT[name.text], 1)
        else:
            raise FormulaError(
                f"`{name.text}` at character {name.position} takes one argument, but got {arity}"
            )

    def _close(self) -> None:
        if not self._at(")"):
            raise self._unexpected("`)`")
        self._take()

    def _emit(self, token: _Token, run: Callable[..., float], arity: int) -> None:
        self.code.append(_Op(token.text, token.position, run=run, arity=arity))

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _at(self, mark: str) -> bool:
        return self._peek.kind == "mark" and self._peek.text == mark

    def _take(self) -> _Token:
        token = self._peek
        self._next += 1
        return token

    def _unexpected(self, wanted: str) -> FormulaError:
        token = self._peek
        if token.kind == "end":
            return FormulaError(
                f"the formula ends at character {token.position}, where {wanted} should stand"
            )
        return FormulaError(f"`{token.text}` at character {token.position} stands where {wanted} should")

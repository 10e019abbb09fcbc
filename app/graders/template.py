"""The template language of graders: `{{ item.path }}` and `{{ sample.path }}`, plain paths and nothing more.

Parses, lists what a template reads, renders. It evaluates nothing: no filters, no expressions, no Jinja.
`spec` parses every template of a grader when it is created, `grade` renders them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from app.graders.json_text import compact

Namespace = Literal["item", "sample"]
Step = str | int

SAMPLE_NAMES = ("output_text", "output_json", "output_tools", "choices")

_OPEN, _CLOSE = "{{", "}}"
_NAME = r"[^\s.\[\]{}\"']+"
_STEPS = re.compile(
    rf"\.(?P<name>{_NAME})|\[(?P<index>\d{{1,9}})\]"
    r"|\[\"(?P<double>[^\"{}]*)\"\]|\['(?P<single>[^'{}]*)'\]"
)
_ROOT = re.compile(_NAME)
_INDEX = re.compile(r"[0-9]{1,9}")


class TemplateError(ValueError):
    """A template that cannot be read; the message names the place."""


class UnresolvedVariable(Exception):
    """A variable of a template that the item or the sample does not have."""

    def __init__(self, path: str, namespace: Namespace) -> None:
        super().__init__(f"`{path}` names nothing in this {namespace}.")
        self.path = path
        self.namespace = namespace


@dataclass(frozen=True, slots=True)
class Variable:
    """One `{{ namespace.path }}`; `text` is the path as the user wrote it, without spaces."""

    namespace: Namespace
    path: tuple[Step, ...]
    text: str

    def resolve(self, root: Mapping[str, Any]) -> Any:
        """Return what the path leads to from the namespace's root.

        Raises: UnresolvedVariable.
        """
        value: Any = root
        for step in self.path:
            try:
                if isinstance(value, Mapping):
                    value = value[str(step)]
                elif isinstance(value, list | tuple) and _INDEX.fullmatch(str(step)):
                    value = value[int(step)]
                else:
                    raise LookupError
            except LookupError:
                raise UnresolvedVariable(self.text, self.namespace) from None
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal text and variables in turn."""

    pieces: tuple[str | Variable, ...]

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Return the variables, in the order they stand."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Variable))

    def render(self, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
        """Return the text with every variable filled in; what is not a string is written as compact JSON.

        Raises: UnresolvedVariable.
        """
        roots = {"item": item, "sample": sample}
        return "".join(
            piece if isinstance(piece, str) else text_of(piece.resolve(roots[piece.namespace]))
            for piece in self.pieces
        )


@lru_cache(maxsize=1024)
def parse(text: str) -> Template:
    """Parse a template.

    Raises: TemplateError, for an unclosed brace, an unknown namespace or a path that is none.
    """
    pieces: list[str | Variable] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        end = text.find(_CLOSE, start)
        if end < 0:
            raise TemplateError(f"the `{{{{` at character {start + 1} is never closed by `}}}}`")
        if start > position:
            pieces.append(text[position:start])
        pieces.append(_variable(text[start + len(_OPEN) : end].strip(), start + 1))
        position = end + len(_CLOSE)
    if position < len(text):
        pieces.append(text[position:])
    return Template(tuple(pieces))


def names(template: Template) -> frozenset[str]:
    """Return the item paths a template reads, as written: `{"item.label"}`."""
    return frozenset(v.text for v in template.variables if v.namespace == "item")


def _variable(inner: str, place: int) -> Variable:
    where = f"`{{{{ {inner} }}}}` at character {place}"
    root = _ROOT.match(inner)
    if root is None:
        raise TemplateError(
            f"{where} names nothing; write `{{{{ item.field }}}}` or `{{{{ sample.output_text }}}}`"
        )
    if root.group() not in ("item", "sample"):
        raise TemplateError(f"{where} must begin with `item.` or `sample.`")
    namespace: Namespace = "item" if root.group() == "item" else "sample"
    path = _path(inner[root.end() :], where)
    if not path:
        raise TemplateError(f"{where} names no field of `{namespace}`")
    if namespace == "sample" and path[0] not in SAMPLE_NAMES:
        known = ", ".join(f"`sample.{name}`" for name in SAMPLE_NAMES)
        raise TemplateError(f"{where} is no variable of the sample; there are {known}")
    return Variable(namespace, path, inner)


def _path(rest: str, where: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    position = 0
    while position < len(rest):
        step = _STEPS.match(rest, position)
        if step is None:
            raise TemplateError(f"{where} is not a path such as `item.answer.values[0]`")
        index = step.group("index")
        steps.append(int(index) if index is not None else str(step.group(step.lastgroup or 0)))
        position = step.end()
    return tuple(steps)


def text_of(value: Any) -> str:
    """Return a value as it stands in a text: strings as they are, all else as compact JSON."""
    return value if isinstance(value, str) else compact(value)

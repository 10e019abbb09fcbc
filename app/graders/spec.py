"""The graders of the wire as one union, and the one way in: `parse_grader`.

A parsed grader is plain frozen data that can be trusted: its templates and its formula compile. What a grader
reads (`item_fields`, `uses_output_json`) is asked here too. The shapes stand in `kinds`.
Called by the services when a grader arrives, by the worker when a job starts.

Source: https://platform.openai.com/docs/guides/graders
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.core import refusals
from app.graders import template
from app.graders.formula import FormulaError, compile_formula
from app.graders.judge_prompt import INSTRUCTING
from app.graders.kinds import (
    AnyGrader,
    Endpoint,
    Grader,
    LabelModel,
    Leaf,
    Message,
    Multi,
    Python,
    ScoreModel,
    TextPart,
    sees_everything,
    templates_of,
)
from app.graders.leniency import normalised
from app.graders.refusals import refusal

__all__ = ["Grader", "ItemField", "dump", "item_fields", "leaves", "parse_grader", "uses_output_json"]

MOST_SOURCE_BYTES = 256_000
RESERVED_ITEM_KEYS = ("messages", "tools")

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[ -~]{0,4096}")
# Those that frame the request are the client's own.
_OUR_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-type"})

_ADAPTER: TypeAdapter[AnyGrader] = TypeAdapter(Grader)


@dataclass(frozen=True, slots=True)
class ItemField:
    """A path of the item that a grader reads, and the grader's keys it stands in."""

    variable: template.Variable
    places: tuple[str, ...]

    @property
    def path(self) -> str:
        """Return the path as written, `item.answer.count`."""
        return self.variable.text


def parse_grader(value: object, *, param: str = "grader", for_training: bool = True) -> Grader:
    """Return the grader that a request holds at `param`.

    `for_training` also refuses a grader that can teach nothing: one that never looks at the answer, or that
    reads the prompt as if it were a field of the item.

    Raises: InvalidRequest, with `param` naming the key at fault.
    """
    plain = normalised(value, param=param)
    try:
        grader = _ADAPTER.validate_python(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise refusal(first, refusals.joined(param, _without_tags(first["loc"]))) from None
    for place, text in _templates(grader):
        try:
            template.parse(text)
        except template.TemplateError as error:
            raise refusals.invalid(str(error), f"{param}.{place}") from None
    for key, leaf in leaves(grader).items():
        _check_leaf(leaf, param if key is None else f"{param}.graders.{key}")
    if isinstance(grader, Multi):
        _check_formula(grader, f"{param}.calculate_output")
    if for_training:
        _check_teaches(grader, param)
    return grader


def dump(grader: Grader) -> dict[str, Any]:
    """Return a grader's normalised wire form; parsing it again gives an equal grader."""
    return grader.model_dump(mode="json", exclude_none=True)


def leaves(grader: Grader) -> dict[str | None, Leaf]:
    """Return the graders that look at an answer, by their key in a multi grader (None outside one)."""
    if isinstance(grader, Multi):
        return dict(grader.graders.items())
    return {None: grader}


def item_fields(grader: Grader) -> tuple[ItemField, ...]:
    """Return every path of the item the grader reads, in order of first use."""
    found: dict[str, tuple[template.Variable, list[str]]] = {}
    for place, variable in _variables(grader):
        if variable.namespace == "item":
            found.setdefault(variable.text, (variable, []))[1].append(place)
    return tuple(ItemField(variable, tuple(dict.fromkeys(places))) for variable, places in found.values())


def uses_output_json(grader: Grader) -> bool:
    """Say whether a template of the grader asks for the answer as JSON."""
    return any(v.namespace == "sample" and v.path[0] == "output_json" for _, v in _variables(grader))


def _templates(grader: Grader) -> list[tuple[str, str]]:
    return [
        (key if name is None else f"graders.{name}.{key}", text)
        for name, leaf in leaves(grader).items()
        for key, text in templates_of(leaf)
    ]


def _variables(grader: Grader) -> list[tuple[str, template.Variable]]:
    return [
        (place, variable) for place, text in _templates(grader) for variable in template.parse(text).variables
    ]


def _without_tags(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    # Pydantic puts the union's tag into the path: ("multi", "graders", "a", "string_check", "input").
    tag, *steps = loc
    if tag == "multi" and steps[:1] == ["graders"]:
        steps = steps[:2] + steps[3:]
    # No key begins with an angle bracket: these are the tags of `kinds`.
    return tuple(step for step in steps if not str(step).startswith("<"))


def _check_leaf(leaf: Leaf, param: str) -> None:
    if isinstance(leaf, ScoreModel | LabelModel):
        _check_messages(leaf.input, f"{param}.input")
    if isinstance(leaf, Python):
        _check_source(leaf.source, f"{param}.source")
    if isinstance(leaf, Endpoint):
        for name, value in (leaf.headers or {}).items():
            _check_header(name, value, f"{param}.headers")
    if isinstance(leaf, ScoreModel) and leaf.range is not None:
        low, high = leaf.range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise refusals.invalid("the lower end must be below the upper one", f"{param}.range")
    if isinstance(leaf, LabelModel):
        if len(set(leaf.labels)) < len(leaf.labels):
            raise refusals.invalid("a label stands twice", f"{param}.labels")
        for index, label in enumerate(leaf.passing_labels):
            if label not in leaf.labels:
                raise refusals.wrong_value(label, leaf.labels, f"{param}.passing_labels[{index}]")


def _check_source(source: str, param: str) -> None:
    # Whether it parses is asked in the sandbox: a parser, too, can be attacked.
    if (size := len(source.encode())) >= MOST_SOURCE_BYTES:
        raise refusals.invalid(f"it has {size:,} bytes; a grader's source has less than 256 kB", param)
    if "\x00" in source:
        raise refusals.invalid("it holds a NUL character", param)


def _check_messages(messages: list[Message], param: str) -> None:
    for index, message in enumerate(messages):
        if message.role not in INSTRUCTING or isinstance(message.content, str):
            continue
        if not all(isinstance(part, TextPart) for part in message.content):
            raise refusals.invalid("instructions are text alone", f"{param}[{index}].content")


def _check_header(name: str, value: str, param: str) -> None:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _OUR_HEADERS:
        raise refusals.invalid(f"'{name[:80]}' is no header that can be set", param)
    if not _HEADER_VALUE.fullmatch(value):
        raise refusals.invalid("a header's value is one line of plain ASCII", f"{param}.{name}")


def _check_formula(grader: Multi, param: str) -> None:
    try:
        formula = compile_formula(grader.calculate_output)
    except FormulaError as error:
        raise refusals.invalid(str(error), param) from None
    for name in sorted(formula.names - set(grader.graders), key=formula.position_of):
        known = refusals.listed(grader.graders)
        place = formula.position_of(name)
        raise refusals.invalid(
            f"`{name}` at character {place} is no key of `graders`; there are {known}", param
        )


def _check_teaches(grader: Grader, param: str) -> None:
    for place, variable in _variables(grader):
        if variable.namespace == "item" and variable.path[0] in RESERVED_ITEM_KEYS:
            raise refusals.invalid(
                f"`{variable.text}` is the prompt: `messages` and `tools` are no fields of the item",
                f"{param}.{place}",
            )
    same = "so every answer would get the same reward"
    if isinstance(grader, Multi) and not compile_formula(grader.calculate_output).names:
        raise refusals.invalid(f"it names none of its graders, {same}", f"{param}.calculate_output")
    if any(sees_everything(leaf) for leaf in leaves(grader).values()):
        return
    if not any(variable.namespace == "sample" for _, variable in _variables(grader)):
        raise refusals.invalid(
            f"no template names the answer (`{{{{ sample.output_text }}}}`), {same}", param
        )

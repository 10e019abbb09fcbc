"""The graders of the wire as one union, and the one way in: `parse_grader`.

A parsed grader is plain frozen data that can be trusted: its templates and its formula compile. What a grader
reads (`item_fields`, `uses_output_json`) is asked here too. Further kinds join `Part` and `Grader`.
Called by the services when a grader arrives, by the worker when a job starts.

Source: https://platform.openai.com/docs/guides/graders
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.core import refusals
from app.graders import template
from app.graders.checks import Operation
from app.graders.formula import FormulaError, compile_formula
from app.graders.leniency import normalised
from app.graders.refusals import refusal
from app.graders.similarity import Metric

RESERVED_ITEM_KEYS = ("messages", "tools")


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StringCheck(_Spec):
    """1 when `operation` holds between the rendered input and reference, else 0."""

    type: Literal["string_check"]
    name: str
    input: str
    reference: str
    operation: Operation


class TextSimilarity(_Spec):
    """How alike the rendered input and reference are, 0 to 1."""

    type: Literal["text_similarity"]
    name: str
    input: str
    reference: str
    evaluation_metric: Metric


Part: TypeAlias = Annotated[StringCheck | TextSimilarity, Field(discriminator="type")]


class Multi(_Spec):
    """Several graders and the formula that joins their rewards."""

    type: Literal["multi"]
    name: str
    graders: dict[str, Part]
    calculate_output: str


Grader: TypeAlias = Annotated[StringCheck | TextSimilarity | Multi, Field(discriminator="type")]

_ADAPTER: TypeAdapter[StringCheck | TextSimilarity | Multi] = TypeAdapter(Grader)


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
    if isinstance(grader, Multi):
        _check_formula(grader, f"{param}.calculate_output")
    if for_training:
        _check_teaches(grader, param)
    return grader


def dump(grader: Grader) -> dict[str, Any]:
    """Return a grader's normalised wire form; parsing it again gives an equal grader."""
    return grader.model_dump(mode="json")


def leaves(grader: Grader) -> dict[str | None, StringCheck | TextSimilarity]:
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
        for key, text in (("input", leaf.input), ("reference", leaf.reference))
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
    return tuple(steps)


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
    if not any(variable.namespace == "sample" for _, variable in _variables(grader)):
        raise refusals.invalid(
            f"no template names the answer (`{{{{ sample.output_text }}}}`), {same}", param
        )

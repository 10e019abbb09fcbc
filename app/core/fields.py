"""Fields of a request's body: what each may hold, said once for the check and for the OpenAPI document.

`read` goes through a body; null is always the same as absent. Called by the services' request readers and
by `app/api/document*.py`, which asks for the schemas.

Source: the error codes of OpenAI's API, e.g. `decimal_above_max_value`, `string_above_max_length`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.core import refusals
from app.core.errors import InvalidRequest

Schema = dict[str, Any]


class Field(Protocol):
    """One key of a body."""

    def check(self, value: Any, param: str) -> Any:
        """Return the value in its normal form. Raises: InvalidRequest with `param`."""

    def schema(self) -> Schema:
        """Return what the document says of it."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number between two bounds, both allowed."""

    low: float
    high: float

    def check(self, value: Any, param: str) -> float:
        """Return the number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refusals.wrong_type("a decimal", value, param)
        return float(_bounded(value, self.low, self.high, param, "decimal"))

    def schema(self) -> Schema:
        """Return the bounds."""
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number between two bounds, both allowed."""

    low: int
    high: int

    def check(self, value: Any, param: str) -> int:
        """Return the number."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise refusals.wrong_type("an integer", value, param)
        return int(_bounded(value, self.low, self.high, param, "integer"))

    def schema(self) -> Schema:
        """Return the bounds."""
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: Any, param: str) -> bool:
        """Return the flag."""
        if not isinstance(value, bool):
            raise refusals.wrong_type("a boolean", value, param)
        return value

    def schema(self) -> Schema:
        """Return a boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text:
    """A text of limited length."""

    most: int = 1_048_576

    def check(self, value: Any, param: str) -> str:
        """Return the text."""
        if not isinstance(value, str):
            raise refusals.wrong_type("a string", value, param)
        if len(value) > self.most:
            message = f"Invalid '{param}': string too long. Expected a string with maximum length {self.most}"
            raise InvalidRequest(
                f"{message}, but got a string with length {len(value)} instead.",
                param=param,
                code="string_above_max_length",
            )
        return value

    def schema(self) -> Schema:
        """Return the length."""
        return {"type": "string", "maxLength": self.most}


@dataclass(frozen=True, slots=True)
class Word:
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: Any, param: str) -> str:
        """Return the word."""
        if not isinstance(value, str):
            raise refusals.wrong_type("a string", value, param)
        if value not in self.words:
            raise refusals.wrong_value(value, self.words, param)
        return value

    def schema(self) -> Schema:
        """Return the words."""
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Made:
    """Whatever a function of its own judges."""

    judge: Callable[[Any, str], Any]
    described: Schema

    def check(self, value: Any, param: str) -> Any:
        """Return what the function makes of it."""
        return self.judge(value, param)

    def schema(self) -> Schema:
        """Return the given description."""
        return self.described


@dataclass(frozen=True, slots=True)
class Inner:
    """An object with fields of its own."""

    fields: Mapping[str, Field]
    required: tuple[str, ...] = ()

    def check(self, value: Any, param: str) -> dict[str, Any]:
        """Return the object without its nulls."""
        if not isinstance(value, Mapping):
            raise refusals.wrong_type("an object", value, param)
        return read(self.fields, value, required=self.required, prefix=f"{param}.")

    def schema(self) -> Schema:
        """Return the object's own schema."""
        return schema_of(self.fields, self.required)


@dataclass(frozen=True, slots=True)
class Array:
    """So many values of one kind."""

    each: Field
    most: int
    least: int = 1

    def check(self, value: Any, param: str) -> list[Any]:
        """Return the values in their normal forms."""
        if not isinstance(value, list):
            raise refusals.wrong_type("an array", value, param)
        if not self.least <= len(value) <= self.most:
            raise refusals.invalid(
                f"it must hold {self.least} to {self.most} values, but holds {len(value)}", param
            )
        return [self.each.check(one, f"{param}[{place}]") for place, one in enumerate(value)]

    def schema(self) -> Schema:
        """Return the bounds and what each value may be."""
        bounds = {"minItems": self.least, "maxItems": self.most}
        return {"type": "array", "items": self.each.schema(), **bounds}


@dataclass(frozen=True, slots=True)
class Absent:
    """What OpenAI knows and this server does not offer: only null, or a value that changes nothing."""

    why: str
    harmless: tuple[Any, ...] = field(default=())

    def check(self, value: Any, param: str) -> Any:
        """Return a harmless value, refuse every other."""
        if not any(type(value) is type(one) and value == one for one in self.harmless):
            raise refusals.unsupported(f"{self.why} Leave '{param}' out.", param)
        return value

    def schema(self) -> Schema:
        """Return the harmless values."""
        return {"enum": [None, *self.harmless]}


def read(
    fields: Mapping[str, Field], body: Mapping[str, Any], *, required: tuple[str, ...] = (), prefix: str = ""
) -> dict[str, Any]:
    """Return what `body` sets, each value checked and nulls left out.

    Raises: InvalidRequest for an unknown key, a missing one, or the first wrong value.
    """
    refusals.refuse_unknown(body, fields, prefix)
    for name in required:
        if body.get(name) is None:
            raise refusals.missing(f"{prefix}{name}")
    return {
        name: fields[name].check(value, f"{prefix}{name}")
        for name, value in body.items()
        if value is not None
    }


def schema_of(fields: Mapping[str, Field], required: tuple[str, ...] = ()) -> Schema:
    """Return the JSON schema of a body with these fields."""
    properties = {
        name: one.schema() if name in required or isinstance(one, Absent) else _or_null(one.schema())
        for name, one in fields.items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def metadata(value: Any, param: str) -> dict[str, str] | None:
    """Return the pairs an object carries, None for none of them. Raises: InvalidRequest."""
    if not isinstance(value, Mapping):
        raise refusals.wrong_type("an object", value, param)
    if len(value) > 16:
        raise refusals.invalid("at most 16 pairs are kept", param)
    for key, text in value.items():
        where = f"{param}.{key[:100]}"
        if not isinstance(text, str):
            raise refusals.wrong_type("a string", text, where)
        if len(key) > 64 or len(text) > 512:
            raise refusals.invalid("a key holds at most 64 and a value at most 512 characters", where)
    return dict(value) or None


METADATA = Made(
    metadata,
    {
        "type": "object",
        "maxProperties": 16,
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    },
)


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _bounded(value: float, low: float, high: float, param: str, kind: str) -> float:
    if low <= value <= high:
        return value
    side, sign, bound, code = (
        ("below minimum", ">=", low, "below_min")
        if value < low
        else ("above maximum", "<=", high, "above_max")
    )
    shown = bound if isinstance(bound, int) else f"{bound:g}"
    raise InvalidRequest(
        f"Invalid '{param}': {kind} {side} value. Expected a value {sign} {shown}, but got {value} instead.",
        param=param,
        code=f"{kind}_{code}_value",
    )

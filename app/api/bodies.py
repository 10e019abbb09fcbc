"""Reads a JSON body in its shape; an unknown key is refused by name. Called by routes whose body has one.

What the values mean is judged in the services.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from app.api.handlers import invalid_parameter
from app.core import refusals


class Shape(BaseModel):
    """The parent of every body's shape."""

    model_config = ConfigDict(strict=True, extra="forbid")


Body = TypeVar("Body", bound=Shape)


def read_body(shape: type[Body], document: Mapping[str, Any]) -> Body:
    """Return the document in its shape. Raises: InvalidRequest that names the first wrong parameter."""
    try:
        return shape.model_validate(document)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        head, *rest = first["loc"]
        raise invalid_parameter({**first, "loc": (refusals.joined(str(head), rest),)}) from None

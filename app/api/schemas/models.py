"""The model object. Source: https://platform.openai.com/docs/api-reference/models/object"""

from typing import Literal

from pydantic import BaseModel

from app.core.clock import seconds
from app.core.tables import Model


class ModelObject(BaseModel):
    """A language model this project may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class DeletedModel(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


def model_object(model: Model, *, organization: str) -> ModelObject:
    """Return the wire form of a model."""
    owner = "system" if model.kind == "base" else f"org-{organization}"
    return ModelObject(id=model.id, created=seconds(model.created_at), owned_by=owner)

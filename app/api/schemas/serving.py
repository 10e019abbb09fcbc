"""Whether a model answers, on the wire (an extension)."""

from typing import Literal

from pydantic import BaseModel

from app.services.serving import State


class ModelServing(BaseModel):
    """A model's state: loaded, ready to be, answered elsewhere, stopped by a person, or down."""

    id: str
    object: Literal["model.serving"] = "model.serving"
    status: State
    description: str

"""Where a served model's bytes lie: the base model it stands on, and the adapter's folder for a tuned one.

Reads the database; who may use which model is the web's question. Called by `api.py`.
"""

from dataclasses import dataclass
from pathlib import Path

from app.core.context import Context
from app.core.errors import NotFound, Unavailable
from app.core.tables import Model


@dataclass(frozen=True, slots=True)
class Place:
    """A model to serve: its base, and its adapter's folder unless it is the base itself."""

    model: str
    base: str
    adapter: Path | None

    @property
    def adapter_name(self) -> str | None:
        """What the adapter is called in memory; names of tuned models are never used twice."""
        return self.model if self.adapter is not None else None


def find(context: Context, model_id: str) -> Place:
    """Return where a model lies.

    Raises: NotFound `model_not_found`, Unavailable for a model that was stopped.
    """
    with context.db.reading() as session:
        model = session.get(Model, model_id)
    if model is None:
        raise NotFound(f"The model '{model_id}' does not exist", param="model", code="model_not_found")
    if model.stopped_at is not None:
        raise Unavailable(f"The model '{model_id}' was stopped: *Load* it first.", code="model_stopped")
    adapter = context.storage.path(model.uri) if model.kind != "base" and model.uri is not None else None
    return Place(model.id, model.base_model, adapter)

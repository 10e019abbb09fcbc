"""The models' page: base models a worker offers, tuned models, kept checkpoints."""

from fastapi import APIRouter
from fastapi.responses import Response

from app.core.tables import Model
from app.dashboard import format, render
from app.dashboard.contexts import ModelRow, ModelsPage
from app.dashboard.visitor import Reading, SignedIn
from app.services import models

router = APIRouter()


@router.get("/models")
def show_models(visitor: SignedIn, session: Reading) -> Response:
    """Show every model this project may name."""
    rows = [_row(model) for model in models.list_models(session, project_id=visitor.project_id)]
    page = ModelsPage(
        frame=visitor.frame(session, title="Models", section="models"),
        base=tuple(row for row in rows if row.kind == "base"),
        tuned=tuple(row for row in rows if row.kind != "base"),
    )
    return render.page("models/models.html", page)


def _row(model: Model) -> ModelRow:
    return ModelRow(model.id, model.kind, model.base_model, model.job_id, _note(model), model.created_at)


def _note(model: Model) -> str:
    details = model.details
    if model.kind == "checkpoint":
        return f"Checkpoint of step {details['step']}" if "step" in details else "Checkpoint"
    if model.kind == "tuned":
        return "Tuned model"
    told = []
    parameters = details.get("parameters")
    if isinstance(parameters, int | float):
        told.append(f"{format.parameters(parameters)} parameters")
    if isinstance(details.get("context"), int):
        told.append(f"{details['context']:,} tokens of context")
    if isinstance(details.get("weights_bytes"), int):
        told.append(format.size(details["weights_bytes"]))
    if details.get("licence"):
        told.append(str(details["licence"]))
    return " · ".join(told)

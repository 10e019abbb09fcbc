"""Routes of models: list, retrieve, delete. A name may hold slashes and colons."""

from fastapi import APIRouter

from app.api.deps import ByCaller, InContext, InSession
from app.api.schemas.lists import Catalogue, catalogue
from app.api.schemas.models import DeletedModel, ModelObject, model_object
from app.services import models

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(context: InContext, session: InSession, caller: ByCaller) -> Catalogue[ModelObject]:
    """List the models this project may name."""
    rows = models.list_models(session, project_id=caller.project_id)
    return catalogue(rows, lambda row: model_object(row, organization=context.settings.organization))


@router.get("/{model_id:path}")
def retrieve_model(context: InContext, session: InSession, caller: ByCaller, model_id: str) -> ModelObject:
    """Return one model; an alias names the one that answers for it."""
    wanted = context.settings.model_aliases.get(model_id, model_id)
    model = models.get_model(session, project_id=caller.project_id, model_id=wanted)
    return model_object(model, organization=context.settings.organization)


@router.delete("/{model_id:path}")
def delete_model(context: InContext, session: InSession, caller: ByCaller, model_id: str) -> DeletedModel:
    """Delete a tuned model or checkpoint with its weights."""
    models.delete_model(session, storage=context.storage, project_id=caller.project_id, model_id=model_id)
    return DeletedModel(id=model_id)

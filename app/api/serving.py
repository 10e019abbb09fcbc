"""Routes of serving (an extension): whether a model answers, and having it stopped or loaded.

Mounted before the models' own routes, whose names may hold slashes.
"""

from fastapi import APIRouter, BackgroundTasks

from app.api.deps import ByCaller, InContext
from app.api.schemas.serving import ModelServing
from app.core.context import Context
from app.services import serving

router = APIRouter(prefix="/models/{model_id:path}", tags=["extensions"])


@router.get("/serving")
def retrieve_serving(context: InContext, caller: ByCaller, model_id: str) -> ModelServing:
    """Say whether a model answers at the moment, and why not."""
    return _serving(context, caller.project_id, model_id)


@router.post("/stop")
def stop_model(context: InContext, caller: ByCaller, model_id: str) -> ModelServing:
    """Let a tuned model or checkpoint answer nobody until it is loaded again."""
    serving.stop(context, project_id=caller.project_id, model_id=model_id)
    return _serving(context, caller.project_id, model_id)


@router.post("/load")
def load_model(
    context: InContext, caller: ByCaller, model_id: str, background: BackgroundTasks
) -> ModelServing:
    """Let a tuned model or checkpoint answer again; it is loaded meanwhile."""
    serving.load(context, project_id=caller.project_id, model_id=model_id)
    background.add_task(serving.warm, context, project_id=caller.project_id, model_id=model_id)
    return _serving(context, caller.project_id, model_id)


def _serving(context: Context, project_id: str, model_id: str) -> ModelServing:
    found = serving.serving(context, project_id=project_id, model_id=model_id)
    return ModelServing(id=model_id, status=found.state, description=found.words)

"""The checkpoint object. Source: https://platform.openai.com/docs/api-reference/fine-tuning/checkpoint-object"""

from typing import Any, Literal

from pydantic import BaseModel

from app.core.clock import seconds
from app.core.tables import Checkpoint


class CheckpointObject(BaseModel):
    """A kept checkpoint of a job, under the name of the model it is."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int


def checkpoint_object(checkpoint: Checkpoint) -> CheckpointObject:
    """Return the wire form of a checkpoint."""
    return CheckpointObject(
        id=checkpoint.id,
        created_at=seconds(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint.model_id,
        fine_tuning_job_id=checkpoint.job_id,
        metrics=checkpoint.metrics,
        step_number=checkpoint.step_number,
    )

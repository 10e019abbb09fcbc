"""The event object. Source: https://platform.openai.com/docs/api-reference/fine-tuning/event-object"""

from typing import Any, Literal

from pydantic import BaseModel

from app.core.clock import seconds
from app.core.tables import Event


class EventObject(BaseModel):
    """Something that happened to a job: a message, or the metrics of a step."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


def event_object(event: Event) -> EventObject:
    """Return the wire form of an event."""
    return EventObject(
        id=event.id,
        created_at=seconds(event.created_at),
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )

"""What a process carries around: its settings, database, storage and queue, built once."""

from dataclasses import dataclass

from app.core.db import Database
from app.core.queue import Queue
from app.core.settings import Settings
from app.core.storage import Storage


@dataclass(frozen=True, slots=True)
class Context:
    """The process's own parts, handed down to routes, tasks and the trainer."""

    settings: Settings
    db: Database
    storage: Storage
    queue: Queue

    @classmethod
    def build(cls, settings: Settings) -> "Context":
        """Build everything from settings; nothing is opened before its first use."""
        queue = Queue(settings)
        return cls(settings, Database(settings.database, queue=queue), Storage(settings.root), queue)

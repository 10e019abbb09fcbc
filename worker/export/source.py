"""What is exported: the adapter, the base it stands on, the job it came from, and prompts to compare with.

Pure reading, before any weight is loaded. Called by the process (`__main__.py`) and by the bench.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from itertools import islice
from pathlib import Path
from typing import Any

from app.core.context import Context
from app.core.errors import NotFound
from app.core.tables import Export, File, Job, Model
from app.services import datasets, evaluations, files
from worker import models
from worker.engine.config import TrainingConfig

# The gate's prompts; so many of the job's own are looked at for those that are not too long.
PROMPTS = 32
_CANDIDATES = 1_000

Messages = list[dict[str, Any]]


class ExportImpossible(Exception):
    """The model can't be exported as it is, and trying again won't help: its message says why."""


@dataclass(frozen=True, slots=True)
class Data:
    """A file the job read: its role, name, sha256, and how many of its examples the gate's prompts are."""

    role: str
    file_id: str
    filename: str | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """Everything an export is made of. The gate asks the job's own conversations before general ones."""

    model_id: str
    form: str
    step: int | None
    job: Job
    base: models.BaseModel
    base_dir: Path
    adapter_dir: Path
    adapter: Mapping[str, Any]
    data: tuple[Data, ...]
    evaluation: Mapping[str, Any] | None
    own: tuple[Messages, ...]
    general: tuple[Messages, ...]

    @classmethod
    def of(cls, context: Context, export_id: str) -> "Source":
        """Read what an export is made of.

        Raises: ExportImpossible when the base model or the adapter is gone.
        """
        with context.db.reading() as session:
            export = session.get_one(Export, export_id)
            model = session.get_one(Model, export.model_id)
            job = session.get_one(Job, model.job_id)
            evaluation = evaluations.evaluation(session, job=job, step=model.details.get("step"))
        try:
            base_dir = models.locate(context.settings, model.base_model)
        except NotFound as problem:
            raise ExportImpossible(problem.message) from problem
        adapter_dir = context.storage.path(model.uri or "gone")
        settings = adapter_dir / "adapter_config.json"
        if not settings.is_file():
            raise ExportImpossible(f"The weights of {model.id} are gone from the storage.")
        data = tuple(_data(context, job))
        general = resources("worker.export").joinpath("prompts.txt").read_text(encoding="utf-8").splitlines()
        return cls(
            model_id=model.id,
            form=export.form,
            step=model.details.get("step"),
            job=job,
            base=models.describe(model.base_model, base_dir),
            base_dir=base_dir,
            adapter_dir=adapter_dir,
            adapter=json.loads(settings.read_text(encoding="utf-8")),
            data=data,
            evaluation=evaluation,
            own=tuple(islice(_conversations(context, job, data), _CANDIDATES)),
            general=tuple([{"role": "user", "content": line}] for line in general),
        )

    @property
    def conversations(self) -> tuple[Messages, ...]:
        """A few of the conversations it was made for, general ones where there are too few."""
        return (*self.own, *self.general)[:PROMPTS]

    def config(self, threads: int | None) -> TrainingConfig:
        """Return a config under which the policy has this adapter's shape; nothing is trained."""
        return TrainingConfig(
            seed=0,
            batch_size=1,
            samples_per_prompt=2,
            total_steps=1,
            max_completion_tokens=1,
            lora_rank=self.adapter["r"],
            lora_alpha=self.adapter["lora_alpha"],
            threads=threads,
        )

    @property
    def weights_bytes(self) -> int:
        """The size of what the form writes, nearly: what the disk must have room for, twice over."""
        if self.form == "adapter":
            return sum(file.stat().st_size for file in self.adapter_dir.iterdir())
        whole = self.base.weights_bytes or 0
        return min(whole, 2 * (self.base.parameters or whole)) if self.form == "gguf" else whole


def _data(context: Context, job: Job) -> Iterator[Data]:
    roles = {
        "training": job.training_file,
        "validation": job.validation_file,
        "test": job.test_file,
    }
    with context.db.reading() as session:
        for role, file_id in roles.items():
            if file_id is not None:
                file = session.get(File, file_id)
                yield Data(role, file_id, file.filename if file else None, file.sha256 if file else None)


def _conversations(context: Context, job: Job, data: tuple[Data, ...]) -> Iterator[Messages]:
    """Yield the job's prompts, those it was not trained on first."""
    for one in reversed(data):
        if one.sha256 is None:
            continue
        with context.db.reading() as session:
            file = files.get_file(session, project_id=job.project_id, file_id=one.file_id)
        path = context.storage.path(files.file_uri(file))
        if path.is_file():
            for row in datasets.read_rows(path):
                # Open models' chat templates know `system`, not OpenAI's newer name for it.
                yield [m | {"role": "system"} if m["role"] == "developer" else m for m in row.messages]

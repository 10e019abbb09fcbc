"""What a job comes to before its first step: rows, splits, resolved numbers, prompts, grammar.

Pure reading: it writes nothing. Made anew by each trainer from the same row and files, so it is the
same plan every time. Called by the runner.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from app.core.context import Context
from app.core.errors import NotFound
from app.core.methods import Facts, learning_rate, resolve
from app.core.response_format import schema_of
from app.core.settings import Settings
from app.core.tables import File, Job, Model
from app.graders.means import Means
from app.graders.spec import Grader, parse_grader
from app.services import datasets, files
from app.services.dataset_rows import Row
from app.services.models import base_of
from worker import models
from worker.engine.config import TrainingConfig
from worker.engine.grammar import Grammar
from worker.engine.policy import Policy
from worker.engine.types import Prompt, StepReport
from worker.grader_faults import Limits
from worker.scoring import Scorer

SPLITS = ("train", "valid", "test")


class PlanError(Exception):
    """The job can't be run as it is, and trying again won't help: its `code`, `param` and message."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(slots=True)
class Pace:
    """How long steps take, and so how long the rest will."""

    total_steps: int
    eval_interval: int
    step_seconds: list[float] = field(default_factory=list)
    evaluation_seconds: float = 0.0

    def add(self, report: StepReport) -> None:
        """Take note of a finished step."""
        evaluation = report.metrics.evaluation_seconds
        self.evaluation_seconds = evaluation or self.evaluation_seconds
        if report.step:
            self.step_seconds.append(report.metrics.iteration_seconds - evaluation)

    def remaining(self, step: int) -> float | None:
        """Return the seconds left after `step`, or None before one was timed."""
        if not self.step_seconds:
            return None
        recent = self.step_seconds[-5:]
        evaluations = self.total_steps // self.eval_interval - step // self.eval_interval
        return (self.total_steps - step) * sum(recent) / len(recent) + evaluations * self.evaluation_seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the runner hands to the engine. `prompts` and `grammar` are there once encoded.

    `start` is the adapter of the tuned model the job goes on from; a checkpoint of its own holds it already.
    """

    grader: Grader
    resolved: dict[str, Any]
    config: TrainingConfig
    model_dir: Path
    start: Path | None
    response_schema: dict[str, Any] | None
    errors_are_zero: bool
    rows: Mapping[str, list[Row]]
    notes: tuple[str, ...]
    pace: Pace
    prompts: Mapping[str, list[Prompt]] = field(default_factory=dict)
    grammar: Grammar | None = None

    @classmethod
    def of(cls, context: Context, job: Job) -> "Plan":
        """Read a job's files and resolve its numbers.

        Raises: PlanError when a file or the model is gone.
        """
        method = job.method["reinforcement"]
        rows, notes = _rows(context, job)
        base = base_of(job.model)
        with context.db.reading() as session:
            model = session.get(Model, base)
            details: dict[str, Any] = model.details if model is not None else {}
        start = _start(context, job)
        schema = schema_of(method["response_format"])
        parameters = int(details.get("parameters") or 1)
        resolved = job.resolved or resolve(
            _with_rank_of(start, method["hyperparameters"]),
            Facts(len(rows["train"]), len(rows["valid"]), parameters, schema is not None),
        )
        try:
            model_dir = models.locate(context.settings, base)
        except NotFound as problem:
            raise PlanError("model_not_available", problem.message, "model") from problem
        return cls(
            grader=parse_grader(method["grader"]),
            resolved=resolved,
            config=_config(job, resolved, parameters, context.settings.threads or None),
            model_dir=model_dir,
            start=start,
            response_schema=schema,
            errors_are_zero=method.get("grader_error_policy") == "zero",
            rows=rows,
            notes=() if job.resolved else notes,
            pace=Pace(resolved["total_steps"], resolved["eval_interval"]),
        )

    def encoded(self, policy: Policy) -> "Plan":
        """Return the plan with its prompts as tokens and its grammar compiled.

        Raises: PlanError naming the row whose prompt leaves no room for an answer or does not suit the chat
        template, or the schema's fault.
        """
        prompts = {
            split: [_prompt(policy, row, role) for row in self.rows[split]]
            for split, role in zip(SPLITS, datasets.ROW_LIMITS, strict=True)
        }
        room = (policy.context_length or 1 << 30) - self.config.max_completion_tokens
        for split, role in zip(SPLITS, datasets.ROW_LIMITS, strict=True):
            for row, prompt in zip(self.rows[split], prompts[split], strict=True):
                if not prompt.token_ids:
                    raise PlanError(
                        f"invalid_{role}",
                        f"Example {row.index + 1} of the {role.replace('_', ' ')} is empty: the model's chat "
                        "template makes no text of it.",
                        role,
                    )
                if len(prompt.token_ids) > room:
                    raise PlanError(
                        f"invalid_{role}",
                        f"Example {row.index + 1} of the {role.replace('_', ' ')} has "
                        f"{len(prompt.token_ids)} tokens; with max_completion_tokens "
                        f"{self.config.max_completion_tokens} at most {room} fit into the model's context.",
                        role,
                    )
        grammar = None
        if self.response_schema is not None:
            try:
                grammar = Grammar.from_json_schema(
                    self.response_schema, policy.tokenizer, vocabulary=policy.vocabulary
                )
            except ValueError as problem:
                where = "method.reinforcement.response_format"
                raise PlanError("invalid_response_format", str(problem), where) from problem
        return replace(self, prompts=prompts, grammar=grammar)

    def scorer(self, settings: Settings, means: Means) -> Scorer:
        """Return the job's score function, which grades by these means."""
        return Scorer(
            self.grader,
            {split: {row.index: row.item for row in rows} for split, rows in self.rows.items()},
            json_expected=self.response_schema is not None,
            errors_are_zero=self.errors_are_zero,
            means=means,
            concurrency=settings.grader_concurrency,
            limits=Limits(settings.grader_error_limit, settings.grader_bad_share, settings.grader_bad_steps),
        )


def _start(context: Context, job: Job) -> Path | None:
    if job.model == base_of(job.model) or job.checkpoint_uri is not None:
        return None
    with context.db.reading() as session:
        model = session.get(Model, job.model)
    if model is None or model.uri is None:
        message = f"The model {job.model} was deleted before the job could start from it."
        raise PlanError("model_not_available", message, "model")
    return context.storage.path(model.uri)


def _with_rank_of(start: Path | None, requested: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the hyperparameters with the rank of the adapter that is tuned further, as it can't change."""
    if start is None:
        return requested
    rank = json.loads((start / "adapter_config.json").read_text())["r"]
    if requested.get("lora_rank", "auto") not in ("auto", rank):
        where = "method.reinforcement.hyperparameters.lora_rank"
        message = f"The model's adapter has rank {rank}, which tuning further keeps: leave lora_rank out."
        raise PlanError("invalid_hyperparameter", message, where)
    return {**requested, "lora_rank": rank}


def _rows(context: Context, job: Job) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    train = _read(context, job, job.training_file, "training_file")
    test = _read(context, job, job.test_file, "test_file") if job.test_file else []
    if job.validation_file is not None:
        valid = _read(context, job, job.validation_file, "validation_file")
        return {"train": train, "valid": valid, "test": test}, ()
    with context.db.reading() as session:
        sha256 = session.get_one(File, job.training_file).sha256
    kept, held = datasets.split_holdout(len(train), sha256)
    note = f"No validation file: {len(held)} of {len(train)} training examples are held out to validate on"
    splits = {"train": [train[i] for i in kept], "valid": [train[i] for i in held], "test": test}
    return splits, (note,)


def _read(context: Context, job: Job, file_id: str, role: str) -> list[Row]:
    with context.db.reading() as session:
        try:
            file = files.get_file(session, project_id=job.project_id, file_id=file_id)
        except NotFound as problem:
            message = f"The {role.replace('_', ' ')} {file_id} was deleted before the job could read it."
            raise PlanError(f"invalid_{role}", message, role) from problem
    return list(datasets.read_rows(context.storage.path(files.file_uri(file))))


def _config(job: Job, resolved: Mapping[str, Any], parameters: int, threads: int | None) -> TrainingConfig:
    return TrainingConfig(
        seed=job.seed,
        batch_size=resolved["batch_size"],
        samples_per_prompt=resolved["samples_per_prompt"],
        total_steps=resolved["total_steps"],
        max_completion_tokens=resolved["max_completion_tokens"],
        temperature=resolved["temperature"],
        learning_rate=learning_rate(parameters, resolved["learning_rate_multiplier"]),
        lora_rank=resolved["lora_rank"],
        kl_beta=resolved["kl_beta"],
        eval_interval=resolved["eval_interval"],
        eval_samples=resolved["eval_samples"],
        eval_temperature=resolved["temperature"],
        threads=threads,
    )


def _prompt(policy: Policy, row: Row, role: str) -> Prompt:
    # Open models' chat templates know `system`, not OpenAI's newer name for it.
    messages = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in row.messages
    ]
    try:
        return Prompt(row.index, policy.encode_chat(messages))
    except TemplateError as problem:
        where = f"Example {row.index + 1} of the {role.replace('_', ' ')}"
        message = f"{where} does not suit the model's chat template: {problem}."
        raise PlanError(f"invalid_{role}", message, role) from problem

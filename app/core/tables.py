"""Every table. A row here is the truth; messages and files only follow it.

No behaviour: services read and write these rows. Times are seconds since the epoch (Double), by the
database's clock where a lease depends on them.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.status import STATUSES

# none_as_null: Python's None is SQL NULL, never the JSON text "null".
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite counts up only an INTEGER key.
Serial = BigInteger().with_variant(Integer(), "sqlite")
Id = String(64)


class Row(DeclarativeBase):
    """The parent of every table."""

    type_annotation_map = {float: Double(), dict[str, Any]: Json, list[str]: Json}  # noqa: RUF012


class Project(Row):
    """What keys, files and jobs belong to."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float]


class ApiKey(Row):
    """A bearer key: its prefix to find it by, its SHA-256 to prove it. The key itself is not kept."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(255))
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    sha256: Mapped[str] = mapped_column(String(64))
    # What the key may do (app/services/scopes.py); `admin` is everything.
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    last_used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class Login(Row):
    """A one-use login token, or the browser session it was exchanged for. Only hashes are kept."""

    __tablename__ = "logins"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    csrf: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    seen_at: Mapped[float]
    expires_at: Mapped[float]
    __table_args__ = (CheckConstraint("kind IN ('token','session')", name="login_kind"),)


class File(Row):
    """An uploaded or made file; its bytes lie in storage under `<project>/<id>`."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    __table_args__ = (Index("file_list", "project_id", "created_at", "id"),)


class Upload(Row):
    """A file that comes in parts; the parts' bytes lie under `uploads/<project>/<id>/<part>`."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    status: Mapped[str] = mapped_column(String(16))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str] = mapped_column(String(255))
    # What the file will hold, as declared. Parts may hold more until it is completed.
    bytes: Mapped[int] = mapped_column(BigInteger)
    # Seconds the finished file will live; null is for ever.
    file_lifetime: Mapped[int | None]
    file_id: Mapped[str | None] = mapped_column(Id)
    # In the order they were completed in; null until then.
    part_ids: Mapped[list[str] | None] = mapped_column(Json)
    created_at: Mapped[float]
    expires_at: Mapped[float]
    __table_args__ = (
        CheckConstraint("status IN ('pending','completed','cancelled','expired')", name="upload_status"),
        Index("upload_sweep", "status", "expires_at"),
    )


class UploadPart(Row):
    """One part of a pending upload. Which place it has is said when the upload is completed."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float]


class Acceptance(Row):
    """A creating request that was accepted, so that sending it again makes no twin."""

    __tablename__ = "acceptances"
    number: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    noun: Mapped[str] = mapped_column(String(16))
    body_sha256: Mapped[str] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    object_id: Mapped[str] = mapped_column(Id)
    created_at: Mapped[float] = mapped_column(index=True)
    __table_args__ = (
        UniqueConstraint("key_id", "noun", "idempotency_key", name="acceptance_once"),
        Index("acceptance_body", "key_id", "noun", "body_sha256", "created_at"),
    )


class Job(Row):
    """A fine-tuning job with its lease. Source of the constraints: reliability.md §1.3."""

    __tablename__ = "fine_tuning_jobs"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    status: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(255))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    training_file: Mapped[str] = mapped_column(Id)
    validation_file: Mapped[str | None] = mapped_column(Id)
    test_file: Mapped[str | None] = mapped_column(Id)
    # The method as the request set it (grader normalised), and every "auto" as a number once running.
    method: Mapped[dict[str, Any]]
    resolved: Mapped[dict[str, Any] | None]
    # Which saved graders stood where in the request: {param: {"id", "version", "sha256"}}.
    saved_graders: Mapped[dict[str, Any] | None]
    # Named `labels` because `metadata` belongs to SQLAlchemy; on the wire it is `metadata`.
    labels: Mapped[dict[str, Any] | None]
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_token: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_expires_at: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int | None]
    checkpoint_uri: Mapped[str | None] = mapped_column(String(255))
    checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))
    not_before: Mapped[float] = mapped_column(default=0.0)
    event_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    training_seconds: Mapped[float] = mapped_column(default=0.0)
    # Tokens paid for by model graders so far: {model: {prompt_tokens, completion_tokens, …}}.
    grader_tokens: Mapped[dict[str, Any]] = mapped_column(default=dict)
    estimated_finish: Mapped[float | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(String(512))
    result_file: Mapped[str | None] = mapped_column(Id)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_param: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(s) for s in STATUSES)})", name="job_status"),
        CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="job_lease_whole"),
        CheckConstraint(
            "status NOT IN ('running','pausing') OR lease_owner IS NOT NULL", name="job_lease_required"
        ),
        CheckConstraint(
            "status IN ('validating_files','running','pausing') OR lease_owner IS NULL",
            name="job_lease_forbidden",
        ),
        Index("job_claim", "status", "not_before", "lease_expires_at"),
        Index("job_list", "project_id", "created_at", "id"),
    )


class Event(Row):
    """A job's event. `seq` counts up inside the job; `number` across all, for the tail."""

    __tablename__ = "job_events"
    number: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(Id, unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"))
    seq: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str] = mapped_column(String(32))
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("job_id", "seq", name="event_order"),)


class Step(Row):
    """A committed step: its presence is what makes a metric point exactly-once."""

    __tablename__ = "step_log"
    job_id: Mapped[str] = mapped_column(
        ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    token: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class Checkpoint(Row):
    """A kept checkpoint of a job: a servable model."""

    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"))
    step_number: Mapped[int] = mapped_column(Integer)
    model_id: Mapped[str] = mapped_column(String(512), unique=True)
    uri: Mapped[str] = mapped_column(String(255))
    metrics: Mapped[dict[str, Any]]
    valid_reward_mean: Mapped[float | None]
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("job_id", "step_number", name="checkpoint_step"),)


class RolloutBatch(Row):
    """The compressed file that holds the texts and parts of one step's rollouts of one split."""

    __tablename__ = "rollout_batches"
    job_id: Mapped[str] = mapped_column(
        ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    split: Mapped[str] = mapped_column(String(8), primary_key=True)
    uri: Mapped[str] = mapped_column(String(255))
    count: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(index=True)


class Rollout(Row):
    """One graded answer, without its text: enough to list, filter and sort."""

    __tablename__ = "rollouts"
    number: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(Id, unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(Integer)
    split: Mapped[str] = mapped_column(String(8))
    item_index: Mapped[int] = mapped_column(Integer)
    sample_index: Mapped[int] = mapped_column(Integer)
    # Its line in the batch's file.
    position: Mapped[int] = mapped_column(Integer)
    reward: Mapped[float | None]
    advantage: Mapped[float | None]
    finish_reason: Mapped[str] = mapped_column(String(16))
    # Names of the error keys that are true, comma-separated; empty when graded cleanly.
    flags: Mapped[str] = mapped_column(String(255))
    prompt_tokens: Mapped[int] = mapped_column(Integer)
    completion_tokens: Mapped[int] = mapped_column(Integer)
    __table_args__ = (
        UniqueConstraint("job_id", "step", "split", "item_index", "sample_index", name="rollout_place"),
    )


class SavedGrader(Row):
    """A grader with a name. What it says stands in its versions."""

    __tablename__ = "graders"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(255))
    latest_version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float]
    updated_at: Mapped[float]
    __table_args__ = (Index("grader_list", "project_id", "created_at", "id"),)


class GraderVersion(Row):
    """What a saved grader said at one time; never changed. `sha256` is that of its compact normal form."""

    __tablename__ = "grader_versions"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    grader_id: Mapped[str] = mapped_column(ForeignKey("graders.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(String(64))
    content: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("grader_id", "version", name="grader_version_order"),)


class Model(Row):
    """A language model there is: a base model a worker offers, a tuned model, or a checkpoint."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(String(512), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    # Null for base models, which every project may use.
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"), index=True)
    base_model: Mapped[str] = mapped_column(String(255))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("fine_tuning_jobs.id"), index=True)
    uri: Mapped[str | None] = mapped_column(String(1024))
    # Base models: parameters, context, licence, architecture, weights_bytes, source.
    details: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    # A person stopped it: it answers nobody until it is loaded again.
    stopped_at: Mapped[float | None]
    __table_args__ = (CheckConstraint("kind IN ('base','tuned','checkpoint')", name="model_kind"),)


class Export(Row):
    """A tuned model as an archive to take away, offered once `ready`; `reason` says why it is not."""

    __tablename__ = "exports"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    form: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    # What the exporter does at the moment, and which share of the whole is done.
    stage: Mapped[str] = mapped_column(String(64))
    progress: Mapped[float] = mapped_column(default=0.0)
    uri: Mapped[str | None] = mapped_column(String(1024))
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    # What the gate measured, of an archive that passed it and of one that did not.
    parity: Mapped[dict[str, Any] | None]
    reason: Mapped[str | None] = mapped_column(Text)
    lease_token: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_expires_at: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    __table_args__ = (
        CheckConstraint("form IN ('adapter','merged','gguf')", name="export_form"),
        CheckConstraint("status IN ('queued','running','ready','refused','failed')", name="export_status"),
        CheckConstraint("status <> 'ready' OR (uri IS NOT NULL AND sha256 IS NOT NULL)", name="export_whole"),
        UniqueConstraint("model_id", "form", name="export_once"),
        Index("export_claim", "status", "created_at"),
    )


class Permission(Row):
    """Another project's right to use a tuned model or checkpoint."""

    __tablename__ = "permissions"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[float]
    __table_args__ = (
        UniqueConstraint("model_id", "project_id", name="permission_once"),
        Index("permission_list", "model_id", "created_at", "id"),
        Index("permission_project", "project_id", "model_id"),
    )


class Completion(Row):
    """A chat completion that its request asked to store: what was sent, and what was answered."""

    __tablename__ = "completions"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model: Mapped[str] = mapped_column(String(512))
    labels: Mapped[dict[str, Any] | None]
    messages: Mapped[list[Any]] = mapped_column(Json)
    # The request but its messages, as far as it is shown again.
    asked: Mapped[dict[str, Any]]
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(index=True)
    __table_args__ = (Index("completion_list", "project_id", "created_at", "id"),)


class Response(Row):
    """A response of the Responses API, with its own input; what came before hangs on `previous_id`."""

    __tablename__ = "responses"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    # Not a foreign key: a response outlives the one before it.
    previous_id: Mapped[str | None] = mapped_column(Id)
    input: Mapped[list[Any]] = mapped_column(Json)
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(index=True)
    # While it is answered in the background: when whoever answers is taken for gone.
    lease_expires_at: Mapped[float | None]


class WebhookEndpoint(Row):
    """Where a project wants its webhooks. The secret is kept as it must sign every delivery."""

    __tablename__ = "webhook_endpoints"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(255))
    url: Mapped[str] = mapped_column(String(2048))
    event_types: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(String(255))
    # The secret before, which signs beside the new one until then.
    old_secret: Mapped[str | None] = mapped_column(String(255))
    old_secret_until: Mapped[float | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[float]
    updated_at: Mapped[float]
    __table_args__ = (Index("webhook_list", "project_id", "created_at", "id"),)


class Webhook(Row):
    """The outbox: what happened, written in the transaction in which it happened."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    object_id: Mapped[str] = mapped_column(Id)
    type: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("object_id", "type", name="webhook_once"),)


class Delivery(Row):
    """One webhook on its way to one endpoint. Its id is the `webhook-id` header, stable across attempts."""

    __tablename__ = "deliveries"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[float]
    lease_token: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_expires_at: Mapped[float | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    latency: Mapped[float | None]
    created_at: Mapped[float]
    delivered_at: Mapped[float | None]
    __table_args__ = (
        CheckConstraint("status IN ('pending','delivered','failed')", name="delivery_status"),
        UniqueConstraint("webhook_id", "endpoint_id", name="delivery_once"),
        Index("delivery_due", "status", "next_attempt_at"),
    )


class Heartbeat(Row):
    """When each part of the service was last alive, and what it says of itself."""

    __tablename__ = "heartbeats"
    part: Mapped[str] = mapped_column(String(64), primary_key=True)
    pid: Mapped[int] = mapped_column(Integer)
    host: Mapped[str] = mapped_column(String(255))
    detail: Mapped[dict[str, Any]]
    beat_at: Mapped[float]

"""Settings: one frozen object, read once from `TUNESMITH_*` variables and passed down.

Every default stands here and in docs/operations.md, nowhere else. Called by the assembling modules
(`main`, `cli`, `parts`, the worker's entry points); everything below receives the object.
"""

import os
import tempfile
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# sun_path holds 108 bytes with its closing NUL.
_SOCKET_PATH_LIMIT = 100


def _default_models() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "tunesmith" / "models"


class Settings(BaseSettings):
    """What an operator may set. Units: seconds, bytes, days."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", frozen=True, extra="ignore")

    data: Path = Path("data")
    models: Path = Field(default_factory=_default_models)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    database_url: str | None = None
    broker_url: str | None = None
    organization: str = "personal"
    # name -> base model served here, for code that still asks for a hosted model.
    model_aliases: dict[str, str] = Field(default_factory=dict)
    # Further base models: "owner/name" from the Hugging Face hub, or "name=/directory". Comma-separated.
    base_models: str = ""
    # Hosts and networks a webhook or an endpoint grader may reach although they are private. Comma-separated.
    webhook_allow: str = ""
    # Host names, beside loopback ones and HOST, under which the dashboard may be opened. Comma-separated.
    allowed_hosts: str = ""
    max_file_bytes: int = 512 * 1024 * 1024
    max_json_bytes: int = 8 * 1024 * 1024
    # A file that comes in parts, and one part of it.
    max_upload_bytes: int = 8 * 1024 * 1024 * 1024
    max_part_bytes: int = 64 * 1024 * 1024
    # Requests of one key, and wrong keys from one address. 0 sets no limit.
    requests_per_minute: int = Field(default=0, ge=0)
    wrong_keys_per_minute: int = Field(default=60, ge=0)
    rollout_retention_days: int = Field(default=30, ge=0)
    # Stored completions and responses; 0 keeps them for ever.
    completion_retention_days: int = Field(default=30, ge=0)
    trainers: int = Field(default=1, ge=1)
    lease_seconds: float = Field(default=30.0, gt=0)
    poll_seconds: float = Field(default=5.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    threads: int = Field(default=0, ge=0)
    # Where the inference process listens, "host:port", when not on its socket in DATA; where the web finds
    # it, or several with commas between them, when not on this machine; and the key it then asks for.
    inference_listen: str = Field(default="", pattern=r"^$|^.*:[0-9]{1,5}$")
    inference_url: str = Field(default="", pattern=r"^$|^https?://[^\s?#,]+(,https?://[^\s?#,]+)*$")
    inference_key: str = ""
    # Weights and caches together; 0 is half of the machine's (or the GPU's) memory.
    inference_memory_bytes: int = Field(default=0, ge=0)
    # 0 is all, and one while a job trains on the machine.
    inference_threads: int = Field(default=0, ge=0)
    # Answers decoded at once, requests that may wait, and how long an unused model stays in memory.
    inference_rows: int = Field(default=32, ge=1, le=256)
    inference_waiting: int = Field(default=128, ge=1)
    inference_idle_seconds: float = Field(default=900.0, gt=0)
    # What Python graders may import, and what one call of theirs may use.
    grader_packages: Path = Path(__file__).parents[2] / ".graders"
    grader_seconds: float = Field(default=120.0, gt=0, le=600)
    grader_memory_bytes: int = Field(default=2 * 1024**3, ge=64 * 1024**2)
    # Answers of one job graded at once.
    grader_concurrency: int = Field(default=8, ge=1)
    # Shares of failed grades: above the first a job pauses, above the second its step is bad.
    grader_error_limit: float = Field(default=0.2, ge=0, le=1)
    grader_bad_share: float = Field(default=0.1, ge=0, le=1)
    # The last of so many bad steps in a row pauses the job.
    grader_bad_steps: int = Field(default=3, ge=1)

    @cached_property
    def root(self) -> Path:
        """The data directory, absolute."""
        return self.data.expanduser().resolve()

    @cached_property
    def database(self) -> str:
        """The SQLAlchemy URL: the operator's, or SQLite inside the data directory."""
        return self.database_url or f"sqlite:///{self.root / 'tunesmith.db'}"

    @cached_property
    def socket(self) -> Path:
        """The embedded broker's socket; in a short temporary folder where its path would be too long."""
        return self._socket("broker.sock")

    @cached_property
    def inference_socket(self) -> Path:
        """Where the inference process listens; moved as the broker's is."""
        return self._socket("inference.sock")

    def _socket(self, name: str) -> Path:
        path = self.root / "run" / name
        if len(str(path).encode()) <= _SOCKET_PATH_LIMIT:
            return path
        # One folder for all of them: its name comes from the folder it stands for.
        digest = sha256(str(path.with_name("broker.sock")).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"tunesmith-{os.getuid()}-{digest}" / name

    @cached_property
    def broker(self) -> str:
        """The Celery broker URL: the operator's, or the embedded Valkey's socket."""
        return self.broker_url or f"redis+socket://{self.socket}"

    @property
    def embedded_broker(self) -> bool:
        """True when this service runs its own broker."""
        return self.broker_url is None

    @property
    def address(self) -> str:
        """The address a person opens."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def listed(self, text: str) -> tuple[str, ...]:
        """Split a comma-separated setting."""
        return tuple(part.strip() for part in text.split(",") if part.strip())

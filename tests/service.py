"""Starts the whole real service for a test: broker, web and worker as `make up` starts them, on a free port.

Its data folder is the test's own and its base model is the tiny one. Used by end-to-end, browser and
fault tests.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app import parts
from app.core.settings import Settings
from tests.tiny_model import build_tiny_model


@dataclass(frozen=True)
class Service:
    """A service that runs: where it is, and how to get in."""

    settings: Settings
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """The address of the dashboard; the API is at `/v1` below it."""
        return self.settings.address

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.settings.root

    @property
    def pids(self) -> dict[str, int]:
        """The process of each part that runs, `service` being the supervisor."""
        found = {
            name: parts.holder(parts.run_folder(self.settings) / f"{name}.lock")
            for name in (*parts.NAMES, "service")
        }
        return {name: words["pid"] for name, words in found.items() if words}

    def key(self) -> str:
        """Return the first API key."""
        return (self.data / "credentials").read_text(encoding="utf-8").strip()

    def login_url(self) -> str:
        """Return a fresh one-use login address."""
        return self.command("login-url").stdout.split()[1]

    def kill(self, part: str) -> None:
        """Kill one part as the out-of-memory killer would."""
        os.kill(self.pids[part], signal.SIGKILL)

    def command(self, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of the commands against this service."""
        return subprocess.run(
            (sys.executable, "-m", "app.cli", name),
            cwd=parts.ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    def logs(self) -> str:
        """Return the end of every log, for the message of a failed test."""
        tails = [
            f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}"
            for log in (self.data / "logs").glob("*.log")
        ]
        return "\n".join(tails)


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def prepare_service(tmp_path: Path, *, model: str = "tiny", **settings: str) -> Service:
    """Return a service that has not been started; `settings` are further `TUNESMITH_` variables."""
    build_tiny_model(tmp_path / "models" / model)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
    environment |= {
        "TUNESMITH_DATA": str(tmp_path / "data"),
        "TUNESMITH_MODELS": str(tmp_path / "models"),
        "TUNESMITH_PORT": str(port),
    }
    environment |= {f"TUNESMITH_{name.upper()}": value for name, value in settings.items()}
    return Service(Settings(data=tmp_path / "data", models=tmp_path / "models", port=port), environment)


@contextmanager
def running_service(tmp_path: Path, *, model: str = "tiny", **settings: str) -> Iterator[Service]:
    """Start the service, yield it healthy, and stop it whatever happens."""
    service = prepare_service(tmp_path, model=model, **settings)
    try:
        started = service.command("up")
        assert started.returncode == 0, started.stderr + service.logs()
        yield service
    finally:
        service.command("down")

"""The container files, read without an engine: they run what the other tests run, from files that exist."""

import re
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from app import parts

ROOT = parts.ROOT
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
# A backslash at a line's end goes on with the next.
LINES = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()


def stages() -> dict[str, list[str]]:
    """Return the instructions of each target, with those of the stage it stands on before them."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in LINES:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            current = found[match[2]] = list(found.get(match[1], []))
        elif line and not line.startswith("#"):
            current.append(line)
    return found


def last_command(target: str) -> list[str]:
    """Return what a target runs."""
    commands = [line for line in stages()[target] if line.startswith("CMD ")]
    words: list[str] = yaml.safe_load(commands[-1].removeprefix("CMD "))
    return words


def installed(target: str) -> list[str]:
    """Return the locks a target installs."""
    return re.findall(r"-r \"?(locks/[\w${}.-]+)", "\n".join(stages()[target]))


def test_both_targets_run_what_the_embedded_parts_run() -> None:
    assert last_command("web") == ["python", *parts.WEB]
    assert last_command("worker") == ["python", *parts.WORKER]


def test_compose_runs_the_same_commands() -> None:
    assert SERVICES["web"]["command"] == ["python", *parts.WEB]
    assert SERVICES["worker"]["command"] == ["python", *parts.WORKER]
    assert SERVICES["inference"]["command"] == ["python", *parts.INFERENCE]
    assert SERVICES["migrate"]["command"] == ["python", "-m", "app.cli", "migrate"]
    assert SERVICES["fetch"]["command"] == ["python", "-m", "worker.models", "fetch"]


def test_the_web_image_has_no_torch() -> None:
    assert installed("web") == ["locks/web.txt", "locks/graders.txt"]
    names = re.findall(r"^([\w.-]+)==", (ROOT / "locks" / "web.txt").read_text(), re.MULTILINE)
    assert "fastapi" in names
    assert not {"torch", "transformers", "peft"} & set(names)
    assert "COPY worker worker" not in stages()["web"]


def test_every_lock_exists_and_is_installed_with_hashes() -> None:
    named = [lock.replace("${TORCH}", build) for lock in installed("worker") for build in ("cpu", "default")]
    assert "locks/torch-default.txt" in named
    for lock in named:
        assert (ROOT / lock).is_file(), lock
    for line in stages()["worker"]:
        for command in re.findall(r"pip install [^&]*", line):
            assert "--no-deps --require-hashes" in command


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in stages()["worker"]:
        if line.startswith("COPY "):
            source = line.split()[1]
            assert (ROOT / source).exists(), line
            assert source.split("/")[0] in allowed, line


@pytest.mark.parametrize("name", ["web", "worker", "inference", "migrate"])
def test_web_worker_and_migration_share_database_broker_and_files(name: str) -> None:
    service = SERVICES[name]
    assert service["environment"]["TUNESMITH_DATABASE_URL"].startswith("postgresql+psycopg://")
    assert service["environment"]["TUNESMITH_BROKER_URL"] == "redis://redis:6379/0"
    assert "data:/data" in service["volumes"]
    assert service["build"]["target"] == ("worker" if name in ("worker", "inference") else "web")


@pytest.mark.parametrize("name", ["web", "worker", "inference", "migrate"])
def test_any_password_reaches_the_database(name: str) -> None:
    """It stands beside the URL, which its characters could not break."""
    environment = SERVICES[name]["environment"]
    url = make_url(environment["TUNESMITH_DATABASE_URL"])
    assert (url.username, url.password, url.host) == ("tunesmith", None, "postgres")
    assert environment["PGPASSWORD"] == SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_the_port_is_the_same_inside_and_outside() -> None:
    port = SERVICES["web"]["environment"]["TUNESMITH_PORT"]
    assert SERVICES["web"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_nothing_starts_before_the_schema_is_there() -> None:
    for name in ("web", "worker", "inference"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_the_worker_reserves_a_gpu_and_may_finish_its_step() -> None:
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= parts.GRACE_SECONDS["worker"]


def test_the_inference_process_has_its_socket_where_the_web_looks_for_it() -> None:
    """Both see one data folder, and neither is told of another place."""
    for name in ("web", "inference"):
        assert "data:/data" in SERVICES[name]["volumes"]
        assert not {key for key in SERVICES[name]["environment"] if key.startswith("TUNESMITH_INFERENCE")}


def test_no_password_is_written_down() -> None:
    for service in SERVICES.values():
        for value in (service.get("environment") or {}).values():
            assert "PASSWORD" not in str(value) or "${TUNESMITH_DB_PASSWORD:?" in str(value)


def test_every_named_volume_is_declared() -> None:
    used = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])

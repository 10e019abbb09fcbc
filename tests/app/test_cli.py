"""The commands against the whole real service: starting twice, a taken port, killed parts, another's data."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.core.db import Database
from tests.service import Service, prepare_service, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One running service for the whole module."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


def until(condition: Callable[[], bool], service: Service) -> None:
    """Wait for what the supervisor is bound to do."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, service.logs()
        time.sleep(0.1)


def healthy(service: Service) -> bool:
    """Say whether `status` finds nothing wrong."""
    return service.command("status").returncode == 0


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_up_leaves_a_service_that_answers(service: Service) -> None:
    assert set(service.pids) == {"service", "broker", "worker", "inference", "web"}
    assert httpx.get(f"{service.url}/healthz", trust_env=False).status_code == 200
    headers = {"Authorization": f"Bearer {service.key()}"}
    models = httpx.get(f"{service.url}/v1/models", headers=headers, trust_env=False).json()["data"]
    assert [model["id"] for model in models] == ["tiny"]


def test_the_base_model_answers_through_the_web(service: Service) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Say a."}], "max_tokens": 4, "seed": 1}
    headers = {"Authorization": f"Bearer {service.key()}"}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60) as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text + service.logs()
    assert 0 < answer.json()["usage"]["completion_tokens"] <= 4


def test_the_first_key_is_readable_by_its_owner_alone(service: Service) -> None:
    assert (service.data / "credentials").stat().st_mode & 0o777 == 0o600


def test_the_login_address_opens_the_dashboard_once(service: Service) -> None:
    address = service.login_url()
    with httpx.Client(trust_env=False) as browser:
        first = browser.get(address)
        assert first.status_code == 303, first.text
        assert browser.get(f"{service.url}/finetune").status_code == 200
    assert httpx.get(address, trust_env=False).status_code != 303


def test_starting_twice_says_that_it_runs(service: Service) -> None:
    before = service.pids
    again = service.command("up")
    assert again.returncode == 0
    assert again.stdout.startswith(f"Tunesmith is already running at {service.url}\n")
    assert service.pids == before
    foreground = service.command("serve")
    assert foreground.returncode == 1
    assert foreground.stderr == f"Tunesmith is already running at {service.url}.\n"


def test_a_running_service_is_found_where_it_is(service: Service) -> None:
    """This shell names another port than the service was started with."""
    before = service.pids
    again = service.command("up", TUNESMITH_PORT="9")
    assert again.returncode == 0, again.stderr
    said = again.stdout.splitlines()
    assert said[:2] == [
        f"Tunesmith is already running at {service.url}",
        "It stays there: for http://127.0.0.1:9, `make down` first.",
    ]
    assert said[2].startswith(f"Dashboard: {service.url}/login?token=")
    assert service.command("address", TUNESMITH_PORT="9").stdout == f"{service.url}\n"
    assert service.pids == before


def test_key_prints_a_key_that_works(service: Service) -> None:
    secret = service.command("key").stdout.strip()
    answer = httpx.get(
        f"{service.url}/v1/models", headers={"Authorization": f"Bearer {secret}"}, trust_env=False
    )
    assert secret != service.key()
    assert answer.status_code == 200


def test_status_names_each_part_and_what_is_there(service: Service) -> None:
    until(lambda: healthy(service), service)
    said = service.command("status").stdout
    for name, pid in service.pids.items():
        assert name == "service" or f"{name:<9} running      pid {pid}" in said
    assert "heartbeat" in said
    assert "models   tiny" in said


@pytest.mark.parametrize("part", ["broker", "worker", "inference", "web"])
def test_a_killed_part_comes_back(service: Service, part: str) -> None:
    before = service.pids
    service.kill(part)
    until(lambda: service.pids.get(part, before[part]) != before[part] and healthy(service), service)
    assert set(service.pids) == set(before)


def test_a_killed_supervisor_leaves_nothing_in_the_way(service: Service) -> None:
    before = service.pids
    service.kill("service")
    until(lambda: "service" not in service.pids, service)
    stopped = service.command("status")
    assert "Tunesmith is not running" in stopped.stdout
    assert stopped.stderr == "Start it with `make up`.\n"
    assert service.command("up").returncode == 0, service.logs()
    assert not set(service.pids.values()) & set(before.values())


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    service = prepare_service(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", service.settings.port))
        other.listen()
        refused = service.command("up")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Port {service.settings.port} of 127.0.0.1 can't be used")
    assert "TUNESMITH_PORT=8001 make up" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not service.data.exists()


def test_data_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    service = prepare_service(tmp_path)
    assert service.command("migrate").returncode == 0
    database = Database(service.settings.database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    database.dispose()
    refused = service.command("up")
    assert refused.returncode == 1
    assert "written by a newer Tunesmith (schema from_the_future)" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert service.pids == {}


@pytest.mark.parametrize("port", ["many", "0"])
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, port: str) -> None:
    service = prepare_service(tmp_path)
    refused = service.command("up", TUNESMITH_PORT=port)
    assert refused.returncode == 1
    assert refused.stderr.startswith("TUNESMITH_PORT: ")


def test_commands_on_a_service_that_was_never_started(tmp_path: Path) -> None:
    service = prepare_service(tmp_path)
    assert service.command("down").stdout == "Tunesmith is not running.\n"
    assert "not running" in service.command("status").stdout
    assert "never started" in service.command("logs").stderr
    assert not service.data.exists(), "asking leaves no trace"


def test_down_ends_every_part(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        before = service.pids
        assert service.command("down").stdout == "Tunesmith has stopped.\n"
        assert service.pids == {}
        # The supervisor lets go of its lock a moment before it ends.
        until(lambda: not any(is_alive(pid) for pid in before.values()), service)

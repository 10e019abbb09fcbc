"""Locks, folders and the life of one part, with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import parts
from app.core.settings import Settings
from app.supervision import Keeper, Supervisor, rotate

SLEEPER = (sys.executable, "-c", "import time; print('awake', flush=True); time.sleep(60)")
STUBBORN = (SLEEPER[0], "-c", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER[2]}")


def until(condition: object, seconds: float = 20.0) -> None:
    """Wait for a condition that is bound to come."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def awake(settings: Settings) -> bool:
    """Say whether the part has got as far as its first word."""
    return "awake" in parts.log_file(settings, "web").read_text()


@pytest.fixture
def folders(settings: Settings) -> Settings:
    """Settings whose folders exist."""
    parts.prepare_folders(settings)
    return settings


def lock_of(settings: Settings, name: str = "web") -> Path:
    """Return the lock file of a part."""
    return parts.run_folder(settings) / f"{name}.lock"


def test_the_data_folder_is_its_owners_alone(folders: Settings) -> None:
    assert folders.root.stat().st_mode & 0o777 == 0o700
    assert folders.socket.parent.stat().st_mode & 0o777 == 0o700


def test_a_running_part_holds_its_lock_and_a_dead_one_does_not(folders: Settings) -> None:
    process = parts.start(parts.Part("web", SLEEPER, {}), folders)
    assert parts.holder(lock_of(folders)) == {"pid": process.pid}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert parts.holder(lock_of(folders)) is None


def test_a_part_is_not_started_twice(folders: Settings) -> None:
    process = parts.start(parts.Part("web", SLEEPER, {}), folders)
    with pytest.raises(BlockingIOError, match="still runs"):
        parts.start(parts.Part("web", SLEEPER, {}), folders)
    parts.stop(process, 5)


def test_a_part_that_ignores_the_request_is_killed(folders: Settings) -> None:
    process = parts.start(parts.Part("web", STUBBORN, {}), folders)
    until(lambda: awake(folders))
    parts.stop(process, 0.1)
    assert process.returncode == -signal.SIGKILL


def test_stopping_ends_the_whole_group(folders: Settings) -> None:
    script = f"import subprocess, sys; p = subprocess.Popen({SLEEPER!r}); print(p.pid, flush=True); p.wait()"
    process = parts.start(parts.Part("web", (sys.executable, "-c", script), {}), folders)
    log = parts.log_file(folders, "web")
    until(lambda: "awake" in log.read_text())
    grandchild = int(log.read_text().split()[0])
    parts.stop(process, 5)
    until(lambda: not Path(f"/proc/{grandchild}").exists() or is_zombie(grandchild))


def is_zombie(pid: int) -> bool:
    """Say whether a process has ended and only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_part_that_outlived_its_supervisor_is_ended(folders: Settings) -> None:
    process = parts.start(parts.Part("web", SLEEPER, {}), folders)
    assert parts.end_leftover(folders, "web", 5)
    process.wait()
    assert not parts.end_leftover(folders, "web", 5)


def test_a_lock_file_left_by_a_dead_process_means_nothing(folders: Settings) -> None:
    lock_of(folders).write_text('{"pid": 1}')
    assert parts.holder(lock_of(folders)) is None
    assert not parts.end_leftover(folders, "web", 1)


def test_a_dead_part_is_started_again_after_a_pause(folders: Settings) -> None:
    keeper = Keeper(parts.Part("web", SLEEPER, {}), folders)
    keeper.tend()
    assert keeper.process is not None
    first = keeper.process.pid
    os.kill(first, signal.SIGKILL)
    keeper.process.wait()
    keeper.tend()
    assert keeper.process is None, "it must wait out its pause"

    def runs_again() -> bool:
        keeper.tend()
        return keeper.process is not None

    until(runs_again)
    assert keeper.process is not None and keeper.process.pid != first
    keeper.stop()


def test_a_part_that_cannot_start_does_not_end_the_supervisor(
    folders: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(parts.Part("web", ("/nowhere/to/be/found",), {}), folders)
    keeper.tend()
    assert keeper.process is None
    assert "starting it again in 0.5 s" in caplog.text


def test_the_broker_listens_on_its_socket_alone(folders: Settings) -> None:
    program = parts.broker_program()
    assert program is not None
    part = parts.Part("broker", parts.broker_command(program, folders), {})
    process = parts.start(part, folders)
    until(lambda: folders.socket.exists())
    assert folders.socket.stat().st_mode & 0o777 == 0o700
    client = redis_client(folders.socket)
    until(lambda: answers(client))
    configuration = client.config_get("*")
    client.close()
    parts.stop(process, 10)
    assert (configuration["port"], configuration["appendonly"]) == ("0", "yes")
    assert configuration["maxmemory-policy"] == "noeviction"


def redis_client(path: Path):  # type: ignore[no-untyped-def]
    """Return a client of a broker's socket."""
    import redis

    return redis.Redis(unix_socket_path=str(path), decode_responses=True)


def answers(client) -> bool:  # type: ignore[no-untyped-def]
    """Say whether a broker answers a ping."""
    import redis

    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_an_operators_broker_needs_no_part_of_ours(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, broker_url="redis://broker:6379/0")
    assert [part.name for part in parts.embedded(settings)] == ["worker", "inference", "web"]


def test_inference_on_another_machine_needs_no_part_of_ours(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, inference_url="http://gpu.internal:8001/v1")
    assert [part.name for part in parts.embedded(settings)][-2:] == ["worker", "web"]


def test_without_a_broker_program_the_worker_only_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    embedded = parts.embedded(Settings(data=tmp_path))
    assert [part.name for part in embedded] == ["worker", "inference", "web"]
    assert {part.environment["TUNESMITH_BROKER_URL"] for part in embedded} == {"memory://"}


def test_a_second_supervisor_of_one_data_folder_is_refused(folders: Settings) -> None:
    from app.supervision import AlreadyRunning

    lock = parts.take(lock_of(folders, "service"))
    assert lock is not None
    with pytest.raises(AlreadyRunning):
        Supervisor(folders).run()
    os.close(lock)


def test_a_long_log_is_moved_aside_while_its_writer_goes_on(
    folders: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.supervision.LOG_BYTES", 1000)
    log = parts.log_file(folders, "web")
    with log.open("ab") as writer:
        subprocess.run((sys.executable, "-c", "print('x' * 2000)"), stdout=writer, check=True)
        rotate(folders, "web")
        subprocess.run((sys.executable, "-c", "print('next')"), stdout=writer, check=True)
    assert log.read_text() == "next\n"
    assert len(log.with_name("web.log.1").read_text()) == 2001

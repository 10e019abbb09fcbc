"""The process itself: on TCP with a key, beating, making way, and ended by a signal."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.core import migrate
from app.core.context import Context
from app.core.settings import Settings
from app.services import heartbeats
from tests.service import free_port
from tests.tiny_model import build_tiny_model
from tests.worker.serving.conftest import add_model
from worker.engine import machine
from worker.serving import sharing
from worker.serving.__main__ import Heartbeat
from worker.supervisor import Supervisor


def test_it_listens_where_it_is_told_to_whoever_has_the_key(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", models=tmp_path / "models")
    settings.root.mkdir()
    migrate.upgrade(settings)
    context = Context.build(settings)
    build_tiny_model(settings.models / "tiny")
    add_model(context, "tiny", "tiny", None)
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")},
        "TUNESMITH_DATA": str(settings.root),
        "TUNESMITH_MODELS": str(settings.models),
        "TUNESMITH_INFERENCE_LISTEN": f"127.0.0.1:{port}",
        "TUNESMITH_INFERENCE_KEY": "open sesame",
    }
    process = subprocess.Popen((sys.executable, "-m", "worker.serving"), env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=240) as client:
            end = time.monotonic() + 240
            while True:
                try:
                    assert client.get("/health").status_code == 401
                    break
                except httpx.TransportError:
                    assert time.monotonic() < end, "it does not listen"
                    time.sleep(0.1)
            client.headers["authorization"] = "Bearer open sesame"
            body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
            assert client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] > 0
        with context.db.reading() as session:
            (beat,) = heartbeats.list_heartbeats(session)
        assert (beat.part, beat.pid) == ("inference", process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) >= sharing.NICENESS
        assert not settings.inference_socket.exists()
    finally:
        process.terminate()
        code = process.wait(20)
        context.db.dispose()
    # Orderly, and then by the very signal, as uvicorn ends.
    assert code == -signal.SIGTERM


def test_a_trainer_at_work_here_is_seen(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not sharing.is_training_here(context.db)
    for trainers, seen in (([], False), (["ftjob-1"], True)):
        with context.db.transaction() as session:
            detail = {"trainers": trainers, "machine": Supervisor(context)._detail()["machine"]}
            heartbeats.beat(session, part="worker", detail=detail)
        assert sharing.is_training_here(context.db) is seen
    # Another container's host name is another, and its machine the same.
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert sharing.is_training_here(context.db) is machine._BOOT.exists()
    monkeypatch.setattr(machine, "_BOOT", tmp_path / "no such file")
    assert not sharing.is_training_here(context.db)
    assert machine.identity() == "another"


def test_a_share_of_the_time_is_worked_to_the_second() -> None:
    pace = sharing.Pace()
    assert pace.rest(1.0, 0.25, hurry=False) == 3.0
    pace.rested(3.0)
    assert pace.owed == 0
    # On credit while a first token is waited for, until three seconds' rest of nine are owed.
    assert [pace.rest(1.0, 0.25, hurry=True) for _ in range(2)] == [0.0, 0.0]
    assert pace.has_credit
    assert pace.rest(1.0, 0.25, hurry=True) == 6.0
    assert not pace.has_credit
    # Made up for in rests twice as long, until nothing is owed.
    pace.rested(6.0)
    assert pace.owed == 3.0
    assert pace.rest(0.5, 0.25, hurry=False) == 3.0
    pace.rested(3.0)
    assert pace.rest(0.5, 0.25, hurry=False) == 3.0
    pace.rested(100.0)
    assert pace.rest(0.5, 0.25, hurry=False) == 1.5
    # Nobody trains any more: nothing is owed.
    assert pace.rest(1.0, 1.0, hurry=False) == 0.0
    assert pace.owed == 0


def test_a_beat_that_fails_in_any_way_is_not_the_last(context: Context) -> None:
    beating = Heartbeat(context)

    def fails() -> list[dict[str, object]]:
        raise RuntimeError("dictionary changed size during iteration")

    beating.describe = fails
    beating.beat()
    beating.describe = list
    beating.beat()
    with context.db.reading() as session:
        assert [beat.part for beat in heartbeats.list_heartbeats(session)] == ["inference"]

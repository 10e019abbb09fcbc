"""The inference process: `python -m worker.serving`.

It listens on a socket in DATA, or on `TUNESMITH_INFERENCE_LISTEN`, beats like every part of the service, and
loads a model when somebody asks for it.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

import uvicorn

from app.core.context import Context
from app.core.settings import Settings
from app.services import heartbeats
from worker.engine import machine
from worker.serving import sharing

BEAT_SECONDS = 5.0
# Of the memory that is free at the start, when the operator sets no number.
_SHARE = 0.5

logger = logging.getLogger("worker.serving")


class Heartbeat(threading.Thread):
    """Says that this process lives, and looks whether a job trains beside it."""

    def __init__(self, context: Context) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._context = context
        self.training = False
        self.describe: Callable[[], Sequence[Mapping[str, object]]] = tuple

    def run(self) -> None:
        """Beat until the process ends."""
        ended = threading.Event()
        while not ended.wait(BEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """Beat once. A database that is away is waited for."""
        try:
            with self._context.db.transaction() as session:
                heartbeats.beat(session, part="inference", detail={"models": list(self.describe())})
            self.training = sharing.is_training_here(self._context.db)
        except Exception as problem:  # boundary: the database may be back at the next beat
            logger.warning("no heartbeat written: %s", problem)


def main() -> None:
    """Serve until a signal ends the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    machine.wait_briefly()
    machine.keep_memory()
    sharing.make_way()
    settings = Settings()
    context = Context.build(settings)
    heartbeat = Heartbeat(context)
    # Both before torch is loaded, which takes seconds: this process lives, and whoever asks is heard.
    listener = listen(settings)
    heartbeat.beat()
    heartbeat.start()

    from worker.serving.api import create_app
    from worker.serving.house import House, Limits

    limits = Limits(
        memory=settings.inference_memory_bytes or _memory(),
        waiting=settings.inference_waiting,
        rows=settings.inference_rows,
        idle_seconds=settings.inference_idle_seconds,
    )

    def threads() -> int:
        return settings.inference_threads or (1 if heartbeat.training else os.cpu_count() or 1)

    def share() -> float:
        return sharing.SHARE if heartbeat.training else 1.0

    def end() -> None:
        # As if asked to, so that whoever started this process starts it again.
        os.kill(os.getpid(), signal.SIGTERM)

    house = House(limits, threads=threads, share=share, failed=end)
    heartbeat.describe = house.describe
    uvicorn.Server(
        uvicorn.Config(
            create_app(context, house),
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    ).run(sockets=[listener])


def listen(settings: Settings) -> socket.socket:
    """Return the socket to answer on, of which nobody but this user knows."""
    if settings.inference_listen:
        host, _, port = settings.inference_listen.rpartition(":")
        return socket.create_server((host or "127.0.0.1", int(port)))
    path = settings.inference_socket
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What a killed predecessor left; the part's lock says that there is no other.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _memory() -> int:
    import torch

    from worker.engine.memory import available

    return int(available(torch.device("cuda" if torch.cuda.is_available() else "cpu")) * _SHARE)


if __name__ == "__main__":
    main()

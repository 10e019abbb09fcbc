"""A real web server in a thread, and a raw connection to it for what no client sends."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import event

from app.core import clock, ids
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Job, Project
from app.main import Server as Web
from app.main import create_app
from app.services import api_keys, jobs, models

BOTH = pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)
MODEL = "tiny/base-model"
GRADER = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
METHOD: dict[str, Any] = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
LINES = b'{"messages":[{"role":"user","content":"2+2?"}],"answer":"4"}\n' * 3


@dataclass(frozen=True)
class Server:
    """A running server, the context of its own process, and a key for it."""

    url: str
    port: int
    context: Context
    key: str
    project_id: str
    http: httpx.Client

    def new_key(self, project: str) -> tuple[str, str]:
        """Make another project and return its id and a key."""
        with self.context.db.transaction() as session:
            row = Project(id=ids.new_id("project"), name=project, created_at=clock.now())
            session.add(row)
            session.flush()
            return row.id, api_keys.create_key(session, project_id=row.id, name="other")[1]

    def raw(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request as it is given, with the key unless headers say otherwise."""
        headers = {"authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        headers = {name: value for name, value in headers.items() if value is not None}
        return self.http.request(method, f"{self.url}{path}", headers=headers, **options)

    def talk(self, *pieces: bytes) -> bytes:
        """Send bytes over a bare connection, piece by piece, and return everything that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            for piece in pieces:
                connection.sendall(piece)
            answer = b""
            while more := connection.recv(65536):
                answer += more
                if _is_whole(answer):
                    return answer
            return answer

    def stored(self) -> list[str]:
        """Return the names of everything that lies in the file storage."""
        folder = self.context.settings.root / "files"
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    def change_job(self, job_id: str, change: Callable[[Job], None]) -> None:
        """Change a job's row as a worker would."""
        with self.context.db.transaction() as session:
            change(jobs.get_job(session, project_id=self.project_id, job_id=job_id))


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(found) and len(body) >= int(line.split(b":")[1])
    return False


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Run the application on a free port until the block is over."""
    app = create_app(settings)
    context: Context = app.state.context
    with context.db.transaction() as session:
        # Its own: the Postgres of a test run is shared.
        project = Project(id=ids.new_id("project"), name="Default project", created_at=clock.now())
        session.add(project)
        session.flush()
        _, secret = api_keys.create_key(session, project_id=project.id, name="test")
        models.register_base_models(session, found={MODEL: {"parameters": 1}})
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    web = Web(app, config)
    # The protocol is named because asyncio sets TCP_NODELAY on no other: answers would wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not web.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    with httpx.Client(trust_env=False, timeout=20) as http:
        yield Server(f"http://127.0.0.1:{port}", port, context, secret, project.id, http)
    web.should_exit = True
    thread.join()
    listener.close()


def count_queries(context: Context, work: Callable[[], Any]) -> int:
    """Return how many statements `work` makes the server run."""
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(context.db.engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(context.db.engine, "before_cursor_execute", note)
    return len(statements)


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; fail when it doesn't come true for ten seconds."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")

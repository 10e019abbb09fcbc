"""The commands: up, down, serve, status, logs, key, project, login-url, address, migrate; `make` calls them.

They assemble and report; what they do is in `app.supervision`, `app.parts`, `app.doctor` and the services.
"""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpx
from pydantic import ValidationError

from app import doctor, parts
from app.core import migrate
from app.core.context import Context
from app.core.errors import AppError
from app.core.settings import Settings
from app.services import api_keys, logins, projects
from app.supervision import AlreadyRunning, Supervisor

HEALTHY_SECONDS = 120.0
# Longer than every part's own patience together.
DOWN_SECONDS = sum(parts.GRACE_SECONDS.values()) + 10.0


class CommandError(Exception):
    """A command cannot do its work; the message is one line that says what to do."""


def up(settings: Settings) -> None:
    """Start the service in the background and return when it is healthy."""
    if _service(settings) is not None:
        at = _running_address(settings)
        _await_health(settings, at, None)
        print(f"Tunesmith is already running at {at}")
        if at != settings.address:
            print(f"It stays there: for {settings.address}, `make down` first.")
        login_url(settings)
        return
    _prepare(settings)
    with parts.log_file(settings, "service").open("ab") as log:
        service = subprocess.Popen(
            (sys.executable, "-m", "app.cli", "serve"),
            cwd=parts.ROOT,
            env={
                **os.environ,
                "TUNESMITH_DATA": str(settings.root),
                "TUNESMITH_MODELS": str(settings.models.expanduser().resolve()),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _await_health(settings, settings.address, service)
    print(f"Tunesmith is running at {settings.address}")
    login_url(settings)
    print(f"API key:   {settings.root / 'credentials'}   (base URL {settings.address}/v1)")
    if not doctor.model_names(settings):
        print(f"There is no base model in {settings.models} yet: run `make model`.")


def serve(settings: Settings) -> None:
    """Run the service in the foreground until a signal ends it."""
    if _service(settings) is not None:
        raise CommandError(f"Tunesmith is already running at {_running_address(settings)}.")
    _prepare(settings)
    try:
        Supervisor(settings).run()
    except AlreadyRunning:
        raise CommandError(f"Tunesmith is already running in {settings.root}.") from None


def down(settings: Settings) -> None:
    """Stop the service; a running job keeps its last step and goes on at the next start."""
    lock = parts.run_folder(settings) / "service.lock"
    running = parts.holder(lock)
    if running is not None and "pid" in running:
        with suppress(ProcessLookupError):
            os.kill(running["pid"], signal.SIGTERM)
        until = time.monotonic() + DOWN_SECONDS
        while parts.holder(lock) is not None and time.monotonic() < until:
            time.sleep(0.1)
        if parts.holder(lock) is not None:
            with suppress(ProcessLookupError):
                os.kill(running["pid"], signal.SIGKILL)
    leftovers = [
        name
        for name in reversed(parts.NAMES)
        if parts.end_leftover(settings, name, parts.GRACE_SECONDS[name])
    ]
    print("Tunesmith has stopped." if running is not None or leftovers else "Tunesmith is not running.")


def status(settings: Settings) -> None:
    """Print each part with its heartbeat, and what this machine has or lacks."""
    running = _service(settings)
    print(f"Tunesmith is {'running at ' + running.get('address', '') if running else 'not running'}")
    states = doctor.part_states(settings)
    for state in states:
        print(doctor.part_line(state))
    for line in doctor.findings(settings):
        print(line)
    if running is None:
        raise CommandError("Start it with `make up`.")
    if not all(state.healthy for state in states):
        raise CommandError("A part is missing or silent: see `make logs`.")


def logs(settings: Settings) -> None:
    """Follow the logs of every part."""
    files = sorted(str(path) for path in (settings.root / "logs").glob("*.log"))
    if not files:
        raise CommandError(f"There are no logs in {settings.root / 'logs'}: the service was never started.")
    os.execvp("tail", ["tail", "-n", "30", "-F", *files])


def key(settings: Settings, *, project: str | None = None, scopes: str = api_keys.ADMIN) -> None:
    """Print a new API key."""
    _open_data(settings)
    listed = settings.listed(scopes)
    print(_new_key(settings, "made by `make key`", project_id=project, scopes=listed))


def add_project(settings: Settings, *, name: str) -> None:
    """Make a project and print it with its first API key."""
    _open_data(settings)
    context = Context.build(settings)
    with context.db.transaction() as session:
        # The first project of a service stays the oldest, which is the one commands speak of.
        projects.default_project(session)
        project = projects.create_project(session, name=name)
        _, secret = api_keys.create_key(session, project_id=project.id, name="first key")
    print(f"Project: {project.id}\nAPI key: {secret}")


def login_url(settings: Settings) -> None:
    """Print an address that signs one browser in to the dashboard."""
    _open_data(settings)
    context = Context.build(settings)
    with context.db.transaction() as session:
        project = projects.default_project(session)
        token = logins.create_token(session, project_id=project.id)
    print(f"Dashboard: {_running_address(settings)}/login?token={token}   (works once, for 15 minutes)")


def address(settings: Settings) -> None:
    """Print where the service of this data folder answers; while it is down, where it would."""
    print(_running_address(settings))


def upgrade(settings: Settings) -> None:
    """Bring the database to this program's schema."""
    migrate.upgrade(settings)
    print("The database is up to date.")


def _prepare(settings: Settings) -> None:
    """Make sure that a start can succeed: a free port, folders, the schema, a first key."""
    parts.end_leftover(settings, "web", parts.GRACE_SECONDS["web"])  # it would hold our port
    _require_free_port(settings)
    _open_data(settings)
    credentials = settings.root / "credentials"
    if not credentials.exists():
        secret = _new_key(settings, "first key")
        descriptor = os.open(credentials, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secret + "\n")


def _open_data(settings: Settings) -> None:
    try:
        parts.prepare_folders(settings)
    except OSError as problem:
        raise CommandError(f"The data folder can't be used: {problem}. Set TUNESMITH_DATA.") from problem
    migrate.upgrade(settings)


def _new_key(
    settings: Settings, name: str, *, project_id: str | None = None, scopes: Sequence[str] = (api_keys.ADMIN,)
) -> str:
    context = Context.build(settings)
    with context.db.transaction() as session:
        if project_id is None:
            project_id = projects.default_project(session).id
        elif not projects.is_there(session, project_id=project_id):
            raise CommandError(f"There is no project {project_id}.")
        return api_keys.create_key(session, project_id=project_id, name=name, scopes=scopes)[1]


def _service(settings: Settings) -> dict[str, str] | None:
    return parts.holder(parts.run_folder(settings) / "service.lock")


def _running_address(settings: Settings) -> str:
    # The lock knows better than this shell's settings, which may be others than the service was started with.
    return (_service(settings) or {}).get("address", settings.address)


def _require_free_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the web server does: a connection of the last run that lingers is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as problem:
            raise CommandError(
                f"Port {settings.port} of {settings.host} can't be used ({problem.strerror}). "
                "Choose another with TUNESMITH_PORT, for example `TUNESMITH_PORT=8001 make up`."
            ) from problem


def _await_health(settings: Settings, at: str, service: subprocess.Popen[bytes] | None) -> None:
    until = time.monotonic() + HEALTHY_SECONDS
    while time.monotonic() < until:
        if service is not None and service.poll() is not None:
            tail = parts.log_file(settings, "service").read_text(errors="replace").strip().splitlines()[-1:]
            raise CommandError(f"The service ended while starting: {' '.join(tail)}")
        if _answers(at) and all(state.healthy for state in doctor.part_states(settings)):
            return
        time.sleep(0.3)
    silent = ", ".join(state.name for state in doctor.part_states(settings) if not state.healthy) or "web"
    raise CommandError(
        f"Not healthy after {HEALTHY_SECONDS:.0f} s ({silent}): see `make logs`. "
        "It goes on trying; `make down` ends it."
    )


def _answers(at: str) -> bool:
    try:
        # trust_env: a proxy of this machine has no business between us and ourselves.
        with httpx.Client(trust_env=False, timeout=2) as client:
            return client.get(f"{at}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


COMMANDS: dict[str, Callable[..., None]] = {
    "up": up,
    "down": down,
    "serve": serve,
    "status": status,
    "logs": logs,
    "key": key,
    "login-url": login_url,
    "address": address,
    "migrate": upgrade,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what goes wrong is said in one line."""
    parser = argparse.ArgumentParser(prog="python -m app.cli")
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=command.__doc__) for name, command in COMMANDS.items()}
    parsers["key"].add_argument(
        "--project", help="the project the key belongs to; the first one if not given"
    )
    parsers["key"].add_argument("--scopes", default=api_keys.ADMIN, help=", ".join(api_keys.SCOPES))
    verbs = commands.add_parser("project", help="make a project").add_subparsers(dest="verb", required=True)
    verbs.add_parser("add", help=add_project.__doc__).add_argument("name")
    options = vars(parser.parse_args(arguments))
    name, verb = options.pop("command"), options.pop("verb", None)
    command = add_project if verb == "add" else COMMANDS[name]
    level = logging.INFO if name == "serve" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        command(Settings(), **options)
    except ValidationError as problem:
        first = problem.errors()[0]
        print(f"TUNESMITH_{str(first['loc'][0]).upper()}: {first['msg']}", file=sys.stderr)
    except AppError as problem:
        print(problem.message, file=sys.stderr)
    except CommandError as problem:
        print(problem, file=sys.stderr)
    except BrokenPipeError:  # `make status | head`
        sys.stdout = None
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())

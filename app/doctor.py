"""What `status` says: each part with its heartbeat, and what this machine has or lacks, with the cure.

It only reads. The parts themselves are `app.parts`, the command is `app.cli`'s.
"""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from app import parts
from app.core import clock
from app.core.db import Database, journal_mode, sqlite_module
from app.core.providers import FILE, Providers, ProvidersError
from app.core.settings import Settings
from app.graders.sandbox.level import SandboxUnavailable, choose
from app.graders.sandbox.paths import installed
from app.services import heartbeats

ROOM_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class PartState:
    """One part as it is now. `age` is the seconds since its last heartbeat, None where it has none."""

    name: str
    pid: int | None
    running: bool
    age: float | None

    @property
    def healthy(self) -> bool:
        """True when the part runs and, where it beats, beats."""
        return self.running and (self.name == "broker" or self.fresh)

    @property
    def fresh(self) -> bool:
        """True when the last heartbeat is recent."""
        return self.age is not None and self.age <= heartbeats.STALE_SECONDS


def part_states(settings: Settings) -> list[PartState]:
    """Return the state of every part this data folder's service is made of."""
    ages, states = _ages(settings), []
    for name in parts.NAMES:
        if name == "broker" and not settings.embedded_broker:
            continue
        if name == "inference" and settings.inference_url:
            continue
        held = parts.holder(parts.run_folder(settings) / f"{name}.lock")
        pid = (held or {}).get("pid")
        # By its pid, so that the last beats of a dead predecessor don't count.
        states.append(PartState(name, pid, held is not None, ages.get((name, pid or 0))))
    return states


def part_line(state: PartState) -> str:
    """Return one line of the table of parts."""
    if not state.running:
        return f"  {state.name:<9} not running"
    if state.name == "broker":
        beat = "listening"
    elif state.age is None:
        beat = "no heartbeat yet"
    elif state.fresh:
        beat = f"heartbeat {state.age:.0f} s ago"
    else:
        beat = f"SILENT for {state.age:.0f} s: see `make logs`"
    return f"  {state.name:<9} running      pid {state.pid or '?':<8} {beat}"


def findings(settings: Settings) -> Iterator[str]:
    """Yield a line for each thing the service stands on: what there is, or what is missing and the cure."""
    yield _line("python", True, platform.python_version())
    yield _database(settings)
    yield _broker(settings)
    folder = settings.root if settings.root.exists() else settings.root.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield _line("disk", free >= ROOM_BYTES, f"{free / 1024**3:.1f} GB free for {settings.root}", "make room")
    names = model_names(settings)
    yield _line("models", bool(names), ", ".join(names) or f"none in {settings.models}", "run `make model`")
    yield _judges(settings)
    yield _sandbox(settings)
    found = installed(settings.grader_packages.expanduser())
    what = ", ".join(f"{name} {version}" for name, version in found.items())
    yield _line(
        "graders", bool(found), what or f"no packages in {settings.grader_packages}", "run `make graders`"
    )
    key = settings.root / "credentials"
    yield _line("key", key.is_file(), f"in {key}" if key.is_file() else "no key yet", "run `make key`")


def _ages(settings: Settings) -> dict[tuple[str, int], float]:
    if settings.database_url is None and not (settings.root / "tunesmith.db").exists():
        return {}  # asking would create it
    database = Database(settings.database)
    try:
        with database.reading() as session:
            now = clock.now()
            return {
                (beat.part.partition(":")[0], beat.pid): now - beat.beat_at
                for beat in heartbeats.list_heartbeats(session)
            }
    except SQLAlchemyError:
        return {}  # down, or not migrated yet: nothing is known to beat
    finally:
        database.dispose()


def model_names(settings: Settings) -> list[str]:
    """Return the names of the base models in the store and the settings, without loading any."""
    store = settings.models.expanduser()
    found = {folder.parent.name for folder in store.glob("[!.]*/config.json")} if store.is_dir() else set()
    return sorted(found | {entry.partition("=")[0] for entry in settings.listed(settings.base_models)})


def _database(settings: Settings) -> str:
    if settings.database_url is not None:
        return _line("database", True, settings.database_url.partition(":")[0].partition("+")[0])
    version, journal = sqlite_module().sqlite_version, journal_mode()
    return _line("database", True, f"SQLite {version}, journal {journal}" + _journal_note(journal))


def _journal_note(journal: str) -> str:
    return "" if journal == "WAL" else " (this SQLite's WAL can lose data; the slower journal is safe)"


def _judges(settings: Settings) -> str:
    try:
        providers = Providers.read(settings.root)
    except ProvidersError as problem:
        return _line("judges", False, str(problem), "mend the file; jobs with judges are refused until then")
    unset = [
        f"{one.name} wants the variable {one.key_variable}" for one in providers.all if not one.has_key()
    ]
    if unset:
        return _line("judges", False, "; ".join(unset), "set it where the service is started")
    return _line("judges", True, ", ".join(providers.models) or f"none: {settings.root / FILE} names none")


def _broker(settings: Settings) -> str:
    if not settings.embedded_broker:
        return _line("broker", True, "as TUNESMITH_BROKER_URL says")
    program = parts.broker_program()
    what = program or "no valkey-server or redis-server: new jobs wait for the worker's poll"
    return _line("broker", program is not None, what, "install valkey or redis; it works without")


def _sandbox(settings: Settings) -> str:
    packages = settings.grader_packages.expanduser().resolve()
    try:
        return _line("sandbox", True, choose(packages=packages, private=settings.root).description)
    except SandboxUnavailable as problem:
        return _line("sandbox", False, "none", problem.message)


def _line(name: str, well: bool, what: str, cure: str = "") -> str:
    return f"  {name:<8} {what}" if well else f"  {name:<8} {what}  ->  {cure}"

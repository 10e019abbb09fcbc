"""The database: engine, sessions, and the rule for SQLite's journal.

`transaction()` writes, `reading()` reads; both end at the edge of a request or task. Nothing else
opens a session. `now()` is the database's own clock, for use inside SQL.

Source: SQLite's WAL-reset corruption bug, https://sqlite.org/wal.html (fixed in 3.51.3, 3.50.7, 3.44.6).
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Engine, create_engine, event, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql.functions import FunctionElement

BUSY_MILLISECONDS = 30_000


class now(FunctionElement[float]):
    """The database clock: seconds since the epoch, so that leases need no agreement between machines."""

    inherit_cache = True
    type = Double()


@compiles(now, "postgresql")
def _now_postgresql(_element: now, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())"


@compiles(now, "sqlite")
def _now_sqlite(_element: now, _compiler: Any, **_: Any) -> str:
    # unixepoch('subsec') would need SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


def database_now() -> ColumnElement[float]:
    """Return the SQL expression for the database's clock."""
    return now()


def sqlite_module() -> ModuleType:
    """Return the newest SQLite at hand: the pysqlite3 wheel where there is one, else Python's own."""
    try:
        return importlib.import_module("pysqlite3")
    except ImportError:
        return importlib.import_module("sqlite3")


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Say whether this SQLite version is free of the WAL-reset bug."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def journal_mode() -> str:
    """Return the journal this machine's SQLite may be trusted with: `WAL`, or `TRUNCATE` when affected."""
    return "WAL" if wal_is_safe(tuple(sqlite_module().sqlite_version_info)) else "TRUNCATE"


class Database:
    """One engine and its sessions. `queue` is where `queue.nudge` sends after a commit."""

    def __init__(self, url: str, *, queue: object = None) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = self._sqlite_engine() if self.is_sqlite else self._server_engine()
        self._sessions = sessionmaker(self.engine, expire_on_commit=False, info={"queue": queue})

    def _server_engine(self) -> Engine:
        url = self.url
        if url.drivername in ("postgres", "postgresql"):
            url = url.set(drivername="postgresql+psycopg")
        return create_engine(url, pool_pre_ping=True)

    def _sqlite_engine(self) -> Engine:
        if self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        # Kept between uses: opening one, with its pragmas, costs more than most requests' statements. Used by
        # one thread at a time, whichever that is; the pool is wider than the web process has threads.
        engine = create_engine(
            self.url,
            module=sqlite_module(),
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=56,
            connect_args={"timeout": BUSY_MILLISECONDS / 1000, "check_same_thread": False},
        )
        journal = journal_mode()

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # BEGIN is ours, below
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
            cursor.execute(f"PRAGMA journal_mode={journal}")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()
            record.info["file"] = self._sqlite_file()

        @event.listens_for(engine, "checkout")
        def _on_checkout(_connection: Any, record: Any, _proxy: object) -> None:
            # Writing on into a file that was deleted or replaced would lose the rows without a word.
            if record.info["file"] != self._sqlite_file():
                raise DisconnectionError

        @event.listens_for(engine, "begin")
        def _on_begin(connection: Connection) -> None:
            # A deferred writer would meet SQLITE_BUSY in its middle, where waiting can't help.
            reading = connection.get_execution_options().get("reading", False)
            connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

        return engine

    def _sqlite_file(self) -> tuple[int, int] | None:
        try:
            found = Path(self.url.database or "").stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Yield a session that commits at the end of the block, or rolls everything back."""
        with self._sessions() as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session for reading only; it takes no write lock and never commits."""
        with self._sessions(bind=self.engine.execution_options(reading=True)) as session:
            yield session

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()

"""Login tokens and browser sessions on both databases: one use, even of two at once; limited lives."""

import threading

import pytest
from sqlalchemy import select, update

from app.core import clock
from app.core.db import Database
from app.core.errors import Unauthenticated
from app.core.tables import Login
from app.services import logins
from tests.factories import make_project


@pytest.fixture
def token(database: Database) -> str:
    """A fresh token."""
    with database.transaction() as session:
        return logins.create_token(session, project_id=make_project(session).id)


def test_token_becomes_a_session(database: Database, token: str) -> None:
    with database.transaction() as session:
        secret = logins.redeem(session, token=token)
    with database.reading() as session:
        login = logins.find_session(session, secret=secret)
        assert login is not None
        assert login.project_id.startswith("proj_")
        assert logins.find_session(session, secret=token) is None


def test_of_two_at_once_one_gets_in(database: Database, token: str) -> None:
    start, results = threading.Barrier(2), []

    def redeem() -> None:
        start.wait()
        try:
            with database.transaction() as session:
                results.append(bool(logins.redeem(session, token=token)))
        except Unauthenticated:
            results.append(False)

    threads = [threading.Thread(target=redeem) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]


@pytest.mark.parametrize("secret", ["", "nonsense", "\x00", "\ud800"])
def test_unknown_secrets_open_nothing(database: Database, secret: str) -> None:
    with database.reading() as session:
        assert logins.find_session(session, secret=secret) is None
    with pytest.raises(Unauthenticated), database.transaction() as session:
        logins.redeem(session, token=secret)


def test_session_lives_seven_days_and_twelve_idle_hours(
    database: Database, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.transaction() as session:
        secret = logins.redeem(session, token=token)
    start = clock.now()

    def lives(after: float) -> bool:
        monkeypatch.setattr(clock, "now", lambda: start + after)
        with database.transaction() as session:
            return logins.find_session(session, secret=secret) is not None

    assert lives(logins.IDLE_SECONDS - 60)
    assert not lives(logins.IDLE_SECONDS + 1)
    for hour in range(6, 7 * 24, 6):
        assert lives(hour * 3600)
        with database.transaction() as session:
            logins.touch(session, secret=secret)
    assert not lives(logins.SESSION_SECONDS + 1)


def test_over_ones_are_swept_away(database: Database, token: str) -> None:
    with database.transaction() as session:
        session.execute(update(Login).values(expires_at=clock.now() - 1))
        project_id = session.scalars(select(Login.project_id)).one()
        logins.create_token(session, project_id=project_id)
    with database.reading() as session:
        assert len(session.scalars(select(Login)).all()) == 1


def test_a_token_signs_nobody_out(database: Database, token: str) -> None:
    with database.transaction() as session:
        secret = logins.redeem(session, token=token)
        project_id = session.scalars(select(Login.project_id)).one()
        other = logins.create_token(session, project_id=project_id)
        logins.end_session(session, secret=other)
        assert logins.find_session(session, secret=secret) is not None
        logins.end_session(session, secret=secret)
        session.expire_all()
        assert logins.find_session(session, secret=secret) is None

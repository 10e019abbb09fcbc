"""Keys: their form, their proof, their end."""

import re
from hashlib import sha256

import pytest
from sqlalchemy import select

from app.core import clock
from app.core.db import Database
from app.core.errors import InvalidRequest, NotFound, Unauthenticated
from app.core.tables import ApiKey
from app.services import api_keys, projects


def _new_key(database: Database, name: str = "laptop") -> tuple[str, str, str]:
    with database.transaction() as session:
        project = projects.default_project(session)
        key, secret = api_keys.create_key(session, project_id=project.id, name=name)
        return project.id, key.id, secret


def test_a_key_proves_itself_and_is_stored_only_as_a_hash(database: Database) -> None:
    project_id, key_id, secret = _new_key(database)
    assert re.fullmatch(r"sk-[A-Za-z0-9]{8}-[A-Za-z0-9]{40}-[0-9a-f]{8}", secret)
    with database.reading() as session:
        key = api_keys.authenticate(session, secret=secret)
        assert (key.id, key.project_id, key.name) == (key_id, project_id, "laptop")
        row = session.execute(select(ApiKey.__table__)).one()
    assert row.sha256 == sha256(secret.encode()).hexdigest()
    assert secret[:11] == f"sk-{row.prefix}"
    assert all(secret[12:] not in str(value) for value in row)


def test_any_other_secret_is_refused_without_being_repeated(database: Database) -> None:
    _, _, secret = _new_key(database)
    _, _, other = _new_key(database)
    # The prefix of one key, the random part of another, a checksum that fits both.
    mixed = secret[:12] + other[12:-9]
    forged = f"{mixed}-{api_keys._checksum(mixed)}"
    with database.reading() as session:
        for wrong in (
            secret[:-1],
            secret + "0",
            secret.upper(),
            forged,
            "sk-",
            "-",
            "\udfff",
            "a\0b",
            "x" * 10_000,
        ):
            with pytest.raises(Unauthenticated) as caught:
                api_keys.authenticate(session, secret=wrong)
            assert caught.value.code == "invalid_api_key"
            assert len(wrong) < 20 or wrong[8:-5] not in caught.value.message
        for nothing in (None, ""):
            with pytest.raises(api_keys.NoKey) as missing:
                api_keys.authenticate(session, secret=nothing)
            assert missing.value.code is None


def test_a_revoked_key_is_refused_and_no_longer_listed(database: Database) -> None:
    project_id, key_id, secret = _new_key(database)
    _, kept, _ = _new_key(database, "kept")
    with database.transaction() as session:
        api_keys.revoke_key(session, project_id=project_id, key_id=key_id)
    with database.transaction() as session:
        first = api_keys.revoke_key(session, project_id=project_id, key_id=key_id).revoked_at
    assert first is not None and first <= clock.now()
    with database.reading() as session:
        with pytest.raises(Unauthenticated):
            api_keys.authenticate(session, secret=secret)
        assert [key.id for key in api_keys.list_keys(session, project_id=project_id)] == [kept]
        assert list(api_keys.list_keys(session, project_id="proj_other")) == []
    with database.transaction() as session, pytest.raises(NotFound):
        api_keys.revoke_key(session, project_id="proj_other", key_id=kept)


def test_touch_writes_at_most_once_a_minute(database: Database) -> None:
    _, key_id, _ = _new_key(database)

    def touch_at(seen: float | None) -> float | None:
        with database.transaction() as session:
            key = session.get_one(ApiKey, key_id)
            key.last_used_at = seen
            session.flush()
            api_keys.touch(session, key)
        with database.reading() as session:
            return session.get_one(ApiKey, key_id).last_used_at

    now = clock.now()
    first = touch_at(None)
    assert first is not None and first >= now
    assert touch_at(now - 30) == pytest.approx(now - 30)
    later = touch_at(now - 61)
    assert later is not None and later >= now


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "a\nb", "a\0b"])
def test_a_key_needs_a_readable_name(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _new_key(database, name)
    assert caught.value.param == "name"

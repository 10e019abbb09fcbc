"""Signing in: one use, a limited life, no open redirect; forms: own origin and token only."""

from pathlib import Path

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from app.core import clock
from app.core.context import Context
from app.core.tables import Login
from app.dashboard.login import own_path
from app.services import logins
from tests.app.dashboard.seed import Seeded


@pytest.fixture
def token(context: Context, seeded: Seeded) -> str:
    """A fresh login token."""
    with context.db.transaction() as session:
        return logins.create_token(session, project_id=seeded.project_id)


def test_token_signs_in_once(anonymous: TestClient, token: str) -> None:
    answer = anonymous.get(f"/login?token={token}")
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert anonymous.get("/finetune").status_code == 200
    assert anonymous.get(f"/login?token={token}").status_code == 401


def test_only_digests_are_stored(context: Context, anonymous: TestClient, token: str) -> None:
    anonymous.get(f"/login?token={token}")
    secret = anonymous.cookies["tunesmith_login"]
    with context.db.reading() as session:
        rows = session.scalars(select(Login)).all()
    assert {row.kind for row in rows} == {"session"}
    database = Path(str(context.db.url.database)).read_bytes()
    assert secret.encode() not in database
    assert token.encode() not in database


def test_token_is_too_old_after_fifteen_minutes(context: Context, anonymous: TestClient, token: str) -> None:
    with context.db.transaction() as session:
        session.execute(update(Login).values(expires_at=clock.now() - 1))
    answer = anonymous.get(f"/login?token={token}")
    assert answer.status_code == 401
    assert "older than 15 minutes" in answer.text


@pytest.mark.parametrize(
    "aged", [{"seen_at": -logins.IDLE_SECONDS}, {"expires_at": 0.0}], ids=["idle", "seven days"]
)
def test_session_ends(context: Context, browser: TestClient, seeded: Seeded, aged: dict[str, float]) -> None:
    with context.db.transaction() as session:
        session.execute(update(Login).values({k: clock.now() + v for k, v in aged.items()}))
    answer = browser.get("/models?x=1")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=/models%3Fx%3D1"


def test_use_is_noted_once_a_minute(context: Context, browser: TestClient) -> None:
    def seen() -> float:
        with context.db.reading() as session:
            return session.scalars(select(Login.seen_at)).one()

    at = seen()
    browser.get("/models")
    assert seen() == at
    with context.db.transaction() as session:
        session.execute(update(Login).values(seen_at=at - logins.TOUCH_SECONDS))
    browser.get("/models")
    assert seen() >= at


def test_signing_out_ends_the_session(browser: TestClient, csrf: str) -> None:
    secret = browser.cookies["tunesmith_login"]
    assert browser.post("/logout", data={"csrf": csrf}).status_code == 303
    browser.cookies.set("tunesmith_login", secret)
    assert browser.get("/models").status_code == 303


def test_link_from_another_site_asks_first(anonymous: TestClient, token: str) -> None:
    answer = anonymous.get(f"/login?token={token}", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert anonymous.get(f"/login?token={token}").status_code == 303


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/finetune?x=1", "/finetune?x=1"),
        ("https://evil.example/", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nSet-Cookie: x=1", "/"),
    ],
)
def test_next_is_a_path_of_ours(address: str, path: str) -> None:
    assert own_path(address) == path


def test_api_key_opens_no_page_and_cookie_no_api(browser: TestClient, anonymous: TestClient) -> None:
    assert browser.get("/v1/files").status_code == 401
    anonymous.cookies.clear()
    assert anonymous.get("/finetune", headers={"authorization": "Bearer sk-x"}).status_code == 303


def test_form_needs_its_token(browser: TestClient, csrf: str) -> None:
    assert browser.post("/api-keys", data={"name": "a"}).status_code == 403
    assert browser.post("/api-keys", data={"name": "a", "csrf": csrf + "x"}).status_code == 403
    assert browser.post("/api-keys", data={"name": "a", "csrf": csrf}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}],
)
def test_form_from_elsewhere_is_refused(browser: TestClient, csrf: str, headers: dict[str, str]) -> None:
    answer = browser.post("/api-keys", data={"name": "a", "csrf": csrf}, headers=headers)
    assert answer.status_code == 403
    assert "another site" in answer.text


def test_nobody_uploads_without_signing_in(anonymous: TestClient, context: Context, seeded: Seeded) -> None:
    before = len(list((context.settings.root / "files").rglob("*")))
    answer = anonymous.post("/storage/files", files={"file": ("a.jsonl", b"{}\n")})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login"
    assert len(list((context.settings.root / "files").rglob("*"))) == before


def test_theme_is_remembered(browser: TestClient) -> None:
    assert browser.post("/theme/dark").status_code == 204
    assert 'data-theme="dark"' in browser.get("/models").text
    assert browser.post("/theme/pink").status_code == 403

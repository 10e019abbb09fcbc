"""Refusals the scenario has no cause for: too large, too often, broken, not there. Each has its exception."""

from typing import Any

import pytest

from app.core import migrate
from app.core.settings import Settings
from tests.app.api.server import serving
from tests.clients.drivers import DRIVERS
from tests.clients.scenario import Scenario
from tests.service import free_port

LARGE = {"$file": {"name": "large.jsonl", "text": "x" * 2_000_000}}


def _refused(status: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"class": kind, "status": status, **fields}


@pytest.mark.parametrize("client", list(DRIVERS))
def test_each_refusal_is_the_clients_own_exception(settings: Settings, client: str) -> None:
    settings = settings.model_copy(update={"max_file_bytes": 1_000, "requests_per_minute": 3})
    migrate.upgrade(settings)
    # Neither client has a class of its own for 413.
    general = "APIError" if client == "node" else "APIStatusError"
    steps: list[dict[str, Any]] = [
        {
            "name": "too large",
            "call": "files.create",
            "with": {"file": LARGE, "purpose": "fine-tune"},
            "error": _refused(413, general, type="invalid_request_error"),
        },
        {
            "name": "broken",
            "call": "files.list",
            "error": _refused(503, "InternalServerError", type="server_error"),
        },
        {"name": "the last of this minute", "call": "models.list"},
        {
            "name": "too often",
            "call": "models.list",
            "error": _refused(429, "RateLimitError", type="requests", code="rate_limit_exceeded", param=None),
        },
    ]
    with serving(settings) as server:
        with server.context.db.transaction() as session:
            session.connection().exec_driver_sql("ALTER TABLE files RENAME TO files_gone")
        scenario = Scenario(steps)
        driven = DRIVERS[client](scenario, base_url=f"{server.url}/v1", api_key=server.key)
        assert scenario.carry_out(driven) == []


@pytest.mark.parametrize("client", list(DRIVERS))
def test_nobody_there_is_a_connection_error(client: str) -> None:
    expected = {"class": "APIConnectionError", "status": None, "code": None}
    scenario = Scenario([{"name": "nobody there", "call": "models.list", "error": expected}])
    driven = DRIVERS[client](scenario, base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="sk-none")
    assert scenario.carry_out(driven) == []

"""How often a key may ask, how often an address may guess."""

import openai
import pytest

from app.api.limits import Limit
from app.core.errors import RateLimited
from app.core.settings import Settings
from tests.app.api.server import MODEL, Server


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """Settings with limits that a test reaches."""
    return settings.model_copy(update={"requests_per_minute": 3, "wrong_keys_per_minute": 2})


def test_a_keys_requests_are_counted_and_then_refused(client: openai.OpenAI, server: Server) -> None:
    left = []
    for _ in range(3):
        answer = server.raw("GET", "/v1/models")
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        left.append(answer.headers["x-ratelimit-remaining-requests"])
    assert left == ["2", "1", "0"]
    with pytest.raises(openai.RateLimitError) as caught:
        client.models.list()
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 20
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    # Each key has its own.
    _, key = server.new_key("other")
    assert [model.id for model in client.with_options(api_key=key).models.list()] == [MODEL]


def test_wrong_keys_are_slowed_and_right_ones_are_not(server: Server) -> None:
    wrong = {"authorization": "Bearer sk-wrong"}
    statuses = [server.raw("GET", "/v1/models", headers=wrong).status_code for _ in range(4)]
    assert statuses == [401, 401, 429, 429]
    refused = server.raw("GET", "/v1/models", headers=wrong)
    assert "wrong API keys" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert server.raw("GET", "/v1/models").status_code == 200
    assert server.raw("GET", "/v1/models", headers={"authorization": None}).status_code == 401


def test_an_allowance_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_000.0
    monkeypatch.setattr("app.api.limits.time.monotonic", lambda: moment)
    limit = Limit(6, "requests")
    assert [limit.take("a").remaining for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(RateLimited) as caught:
        limit.take("a")
    assert caught.value.headers["retry-after"] == "10"
    assert caught.value.headers["x-ratelimit-reset-requests"] == "1m0s"
    moment += 10
    assert limit.take("a").remaining == 0
    moment += 3_600
    assert limit.take("a").remaining == 5

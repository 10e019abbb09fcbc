"""Which of several inference processes answers for a model."""

import pytest
from pydantic import ValidationError

from app.core import engines
from app.core.providers import Providers
from app.core.settings import Settings

MODELS = [f"ft:tiny:personal::{n:08d}" for n in range(200)]


def _homes(urls: str) -> dict[str, str]:
    settings = Settings(inference_url=urls)
    found = {}
    for model in MODELS:
        served = engines.serve(
            model, base_model="tiny", adapter=None, settings=settings, providers=Providers()
        )
        assert served.is_ours
        assert served.socket is None
        found[model] = served.engine.base_url
    return found


def test_several_share_the_models_and_one_more_moves_few() -> None:
    two = _homes("http://a:1/v1,http://b:1/v1")
    assert set(two.values()) == {"http://a:1/v1", "http://b:1/v1"}
    assert all(60 < list(two.values()).count(home) < 140 for home in set(two.values()))
    assert _homes("http://b:1/v1,http://a:1/v1") == two
    three = _homes("http://a:1/v1,http://b:1/v1,http://c:1/v1")
    moved = {model for model in MODELS if three[model] != two[model]}
    assert 30 < len(moved) < 110
    assert {three[model] for model in moved} == {"http://c:1/v1"}


def test_one_answers_for_all() -> None:
    assert set(_homes("http://a:1/v1").values()) == {"http://a:1/v1"}


@pytest.mark.parametrize("urls", ["http://a:1/v1,", "a:1", "http://a:1/v1, http://b:1/v1"])
def test_what_is_no_list_of_addresses_is_refused(urls: str) -> None:
    with pytest.raises(ValidationError, match="inference_url"):
        Settings(inference_url=urls)

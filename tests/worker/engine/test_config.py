"""The config refuses numbers that make no run, and survives a trip through JSON."""

import json

import pytest

from tests.worker.engine.conftest import settings
from worker.engine.config import TrainingConfig


def test_alpha_is_twice_the_rank_unless_said() -> None:
    assert settings(lora_rank=4).lora_alpha == 8
    assert settings(lora_rank=4, lora_alpha=5).lora_alpha == 5


def test_json_gives_the_same_config_back() -> None:
    config = settings(kl_beta=0.01, threads=None)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match="lora_rnak"):
        TrainingConfig.from_dict({**settings().to_dict(), "lora_rnak": 4})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("samples_per_prompt", 1),
        ("total_steps", 1.5),
        ("max_completion_tokens", True),
        ("temperature", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("kl_beta", -0.1),
        ("clip_low", 1.0),
        ("threads", 0),
        ("seed", -1),
        ("advantage", "gae"),
        ("importance_cap", 0.5),
        ("importance_cap", float("inf")),
    ],
)
def test_a_number_that_makes_no_run_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        settings(**{name: value})

"""Every `auto` becomes a sane number, for a demo on a laptop and for a large model on a GPU."""

import pytest

from app.core.methods import Facts, learning_rate, parse_hyperparameters, resolve


def auto() -> dict[str, object]:
    """Return the hyperparameters of a request that set none."""
    return parse_hyperparameters(None, param="h")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(160, 60, 135_000_000, True), {"batch_size": 8, "n_epochs": 1, "total_steps": 20}),
        (Facts(12, 4, 135_000_000, True), {"batch_size": 8, "n_epochs": 10, "eval_samples": 8}),
        (Facts(1, 0, 1_000, False), {"batch_size": 1, "n_epochs": 10, "max_completion_tokens": 512}),
        (Facts(1_100, 200, 8_000_000_000, False), {"batch_size": 16, "n_epochs": 1, "eval_interval": 18}),
        (Facts(50_000, 1_000, 8_000_000_000, True), {"batch_size": 32, "eval_interval": 25}),
    ],
)
def test_auto(facts: Facts, expected: dict[str, float]) -> None:
    """The rules give what their document says."""
    resolved = resolve(auto(), facts)
    assert {key: resolved[key] for key in expected} == expected
    assert resolved["samples_per_prompt"] == 8
    assert not [name for name, value in resolved.items() if value == "auto"]


def test_the_request_wins_over_auto() -> None:
    """Numbers stay; a compute multiplier scales the answers per prompt, never under two."""
    requested = parse_hyperparameters({"batch_size": 4, "compute_multiplier": 0.1, "n_epochs": 3}, param="h")
    resolved = resolve(requested, Facts(10, 5, 10**8, False))
    assert (resolved["batch_size"], resolved["n_epochs"], resolved["total_steps"]) == (4, 3, 9)
    assert resolved["samples_per_prompt"] == 2


def test_learning_rate_falls_with_size() -> None:
    """1e-4 at 135 M, a quarter power down from there, times the multiplier."""
    assert learning_rate(135_000_000, 1) == pytest.approx(1e-4)
    assert learning_rate(8_000_000_000, 1) == pytest.approx(3.6e-5, rel=0.01)
    assert learning_rate(135_000_000, 2) == pytest.approx(2e-4)

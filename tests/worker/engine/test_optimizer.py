"""The guard: skip, roll back at half the rate, give up; and the optimizer's state through a checkpoint."""

from dataclasses import replace

import pytest
import torch

from tests.worker.engine.conftest import Load, settings
from worker.engine.errors import NumericalInstability
from worker.engine.optimizer import Optimizer
from worker.engine.policy import Policy


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.adapter.items()}


def put_gradient(policy: Policy, value: float) -> None:
    for parameter in policy.adapter.values():
        parameter.grad = torch.full_like(parameter, value)


def same(policy: Policy, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(parameter, expected[name]) for name, parameter in policy.adapter.items())


def test_the_first_update_moves_every_weight_by_the_rate(load: Load) -> None:
    policy = load()
    optimizer = Optimizer(policy, settings(learning_rate=0.01))
    before = weights(policy)
    put_gradient(policy, -2.0)
    norm = optimizer.apply()
    count = sum(parameter.numel() for parameter in policy.adapter.values())
    assert norm == pytest.approx(2.0 * count**0.5, rel=1e-4)
    for name, parameter in policy.adapter.items():
        # Adam's first step has the size of the rate; no weight decay pulls at it.
        torch.testing.assert_close(parameter.detach(), before[name] + 0.01, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(load: Load, bad: float) -> None:
    policy = load()
    optimizer = Optimizer(policy, settings())
    before = weights(policy)
    put_gradient(policy, bad)
    assert optimizer.apply() is None
    assert same(policy, before)


def test_weights_that_would_overflow_are_put_back(load: Load) -> None:
    policy = load()
    with torch.no_grad():
        for parameter in policy.adapter.values():
            parameter.fill_(3.39e38)
    optimizer = Optimizer(policy, settings(learning_rate=1e37))
    before = weights(policy)
    put_gradient(policy, -1.0)
    assert optimizer.apply() is None
    assert same(policy, before)


def test_second_failure_rolls_back_and_halves_third_ends(load: Load) -> None:
    policy = load()
    optimizer = Optimizer(policy, settings(learning_rate=0.01))
    good = weights(policy)
    put_gradient(policy, 1.0)
    optimizer.apply()
    after = weights(policy)
    assert "skipped" in optimizer.fail(5)
    assert same(policy, after)
    assert "rolled back" in optimizer.fail(14)
    assert same(policy, good)
    assert optimizer.learning_rate == 0.005
    with pytest.raises(NumericalInstability, match="step 20"):
        optimizer.fail(20)


def test_weights_that_fail_go_back_at_once(load: Load) -> None:
    policy = load()
    optimizer = Optimizer(policy, settings(learning_rate=0.01))
    good = weights(policy)
    put_gradient(policy, 1.0)
    optimizer.apply()
    assert optimizer.fail(5, weights=True) == "the weights were rolled back"
    assert same(policy, good)
    assert optimizer.learning_rate == 0.01
    assert "halved" in optimizer.fail(6, weights=True)
    assert optimizer.learning_rate == 0.005


def test_failures_far_apart_do_not_add_up(load: Load) -> None:
    optimizer = Optimizer(load(), settings())
    for step in (1, 11, 21, 31):
        assert "skipped" in optimizer.fail(step)
    assert optimizer.state.learning_rate_scale == 1.0


def test_state_through_tensors_continues_to_the_bit(load: Load) -> None:
    policy, other = load(), load()
    optimizer = Optimizer(policy, settings())
    for value in (1.0, -0.5, 0.2):
        put_gradient(policy, value)
        optimizer.apply()
    resumed = Optimizer(other, settings())
    with torch.no_grad():
        for name, parameter in other.adapter.items():
            parameter.copy_(policy.adapter[name])
    resumed.load(optimizer.tensors(), replace(optimizer.state))
    for owner, updated in ((policy, optimizer), (other, resumed)):
        put_gradient(owner, 0.7)
        updated.apply()
    assert same(other, weights(policy))
    for updated in (optimizer, resumed):
        assert "skipped" in updated.fail(8)
        assert "rolled back" in updated.fail(9)
    assert same(other, weights(policy))

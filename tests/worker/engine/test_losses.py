"""The loss against numbers worked by hand, on 2 answers of 3 tokens."""

import math

import pytest
import torch

from worker.engine.losses import clipped, importance_weights, k3, token_loss

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def rows(*ratios: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probs with these ratios to old log-probs of -1."""
    old = torch.full((len(ratios),), -1.0)
    new = (old + torch.tensor([math.log(ratio) for ratio in ratios])).requires_grad_()
    return new, old


def test_hand_worked_two_by_three() -> None:
    new, old = rows(1.0, 1.5, 0.5, 1.0, 1.5, 0.5)
    advantages = torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0, -1.0])
    found = token_loss(new, old, advantages, **CLIP)
    # A = 2: min(2, 2) + min(3, 2.56) + min(1, 1.6); A = -1: min(-1, -1) + min(-1.5, -1.28) + min(-0.5, -0.8)
    assert found.loss.item() == pytest.approx(-((2 + 2.56 + 1) + (-1 - 1.5 - 0.8)))
    assert found.clipped.item() == 2
    found.loss.backward()
    # d/dlogprob = -A·r where the clip is idle, 0 where it holds.
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-2.0, 0.0, -1.0, 1.0, 1.5, 0.0])


def test_on_policy_the_gradient_is_minus_the_advantage() -> None:
    new, old = rows(1.0, 1.0)
    token_loss(new, old, torch.tensor([0.7, -0.3]), **CLIP).loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-0.7, 0.3])


def test_the_sum_does_not_depend_on_the_cut() -> None:
    new, old = rows(1.1, 0.9, 1.4, 0.6)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    whole = token_loss(new, old, advantages, **CLIP).loss
    parts = [
        token_loss(new[part], old[part], advantages[part], **CLIP).loss for part in (slice(1), slice(1, 4))
    ]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts))


def test_kl_to_the_base_is_hand_worked_and_pulls_back() -> None:
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    base = torch.tensor([-1.5, -2.0])
    found = token_loss(new, new.detach(), torch.zeros(2), base, **CLIP, kl_beta=0.1)
    expected = math.exp(-0.5) + 0.5 - 1
    assert found.kl.item() == pytest.approx(expected)
    assert found.loss.item() == pytest.approx(0.1 * expected, abs=1e-6)
    found.loss.backward()
    # d k3 / d logprob = 1 - exp(base - logprob): above 0, so descent lowers a log-prob that ran ahead of
    # the base.
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.1 * (1 - math.exp(-0.5)), 0.0])


def test_k3_is_never_negative() -> None:
    gaps = torch.cat([torch.linspace(-3, 3, 101), torch.linspace(-1e-7, 1e-7, 11)])
    assert bool((k3(gaps, torch.zeros_like(gaps)) >= 0).all())


def test_clip_higher_leaves_more_room_above_than_below() -> None:
    ratios = torch.tensor([0.5, 0.8, 1.0, 1.25, 1.28, 2.0])
    assert clipped(ratios, 0.2, 0.28).tolist() == pytest.approx([0.8, 0.8, 1.0, 1.25, 1.28, 1.28])


def test_importance_weights_by_hand_capped_above_and_free_below() -> None:
    sampler = torch.tensor([-1.0, -1.0, -1.0])
    trainer = sampler + torch.tensor([math.log(0.25), math.log(1.5), math.log(8.0)])
    weights = importance_weights(trainer.requires_grad_(), sampler, 2.0)
    assert weights.tolist() == pytest.approx([0.25, 1.5, 2.0])
    assert not weights.requires_grad


def test_with_a_cap_the_loss_is_weighed_and_the_clip_is_idle_at_the_first_update() -> None:
    new, old = rows(0.5, 1.5, 3.0)
    advantages = torch.tensor([1.0, 2.0, -1.0])
    found = token_loss(new, old, advantages, **CLIP, importance_cap=2.0)
    # w = 0.5, 1.5, 2 and r = 1: the ratios to the sampler's log-probs clip nothing.
    assert found.loss.item() == pytest.approx(-(0.5 + 3.0 - 2.0))
    assert found.clipped.item() == 0
    found.loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-0.5, -3.0, 2.0])
    # The gap is still measured to what the sampler said.
    assert found.sampler_trainer_kl.item() == pytest.approx(k3(new.detach(), old).sum().item())


def test_where_sampler_and_trainer_agree_the_cap_changes_nothing() -> None:
    (new, old), (other, _) = rows(1.0, 1.0), rows(1.0, 1.0)
    advantages = torch.tensor([0.7, -0.3])
    token_loss(new, old, advantages, **CLIP).loss.backward()
    token_loss(other, old, advantages, **CLIP, importance_cap=2.0).loss.backward()
    assert new.grad is not None
    assert other.grad is not None
    assert torch.equal(new.grad, other.grad)

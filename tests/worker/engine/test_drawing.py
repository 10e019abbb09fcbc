"""Inverse-CDF draws: the right token for a uniform, the right shares over many, never a masked one."""

import math

import pytest
import torch

from worker.engine.drawing import draw
from worker.engine.errors import NonFinite


def test_each_uniform_falls_where_the_running_sum_says() -> None:
    shares = torch.tensor([0.1, 0.2, 0.0, 0.7])
    uniforms = torch.tensor([0.05, 0.15, 0.299, 0.301, 0.999], dtype=torch.float64)
    tokens, logprobs = draw(shares.log().repeat(5, 1), uniforms, 1.0)
    assert tokens.tolist() == [0, 1, 1, 3, 3]
    assert logprobs.tolist() == pytest.approx([shares[token].log().item() for token in tokens.tolist()])


def test_a_draw_past_what_a_block_holds_takes_its_heaviest_token() -> None:
    """The block's float32 sum is 1 + 2/2^24, its tokens' is 1 + 1.5/2^24: nothing is between the two."""
    logits = torch.full((1, 256), -80.0)
    logits[0, 10], logits[0, 20] = 0.0, math.log(1.5 / 2**24)
    tokens, logprobs = draw(logits, torch.tensor([1 - 1e-8], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [10]
    assert logprobs.tolist() == pytest.approx([0.0], abs=1e-6)


def test_shares_match_the_softmax_over_a_vocabulary_of_many_blocks() -> None:
    draw_from = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)) * 2
    expected = draw_from[0].softmax(-1)
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = draw(draw_from.repeat(20_000, 1), uniforms, 1.0)
    found = torch.bincount(tokens, minlength=1000) / 20_000
    assert (found - expected).abs().max() < 1.5 / 20_000
    torch.testing.assert_close(logprobs, expected.log()[tokens], atol=1e-5, rtol=0)


def test_temperature_sharpens_the_distribution_that_is_reported() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    tokens, logprobs = draw(logits.clone(), torch.tensor([0.99], dtype=torch.float64), 0.5)
    assert logprobs[0] == pytest.approx((logits / 0.5).log_softmax(-1)[0, tokens[0]].item(), abs=1e-6)


def test_temperature_zero_takes_the_likeliest_whatever_the_uniform() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0]]).repeat(2, 1)
    tokens, logprobs = draw(logits.clone(), torch.tensor([0.001, 0.999], dtype=torch.float64), 0.0)
    assert tokens.tolist() == [1, 1]
    assert logprobs.tolist() == pytest.approx([logits.log_softmax(-1)[0, 1].item()] * 2)


def test_each_row_has_its_own_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(3, 1)
    uniforms = torch.tensor([0.001, 0.001, 0.7], dtype=torch.float64)
    tokens, logprobs = draw(logits.clone(), uniforms, torch.tensor([0.0, 1.0, 0.5]))
    assert tokens.tolist() == [2, 0, 2]
    expected = [
        (logits[0] / warmth).log_softmax(-1)[token].item() for warmth, token in ((1, 2), (1, 0), (0.5, 2))
    ]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("words", [4, 5000])
def test_top_p_leaves_the_fewest_tokens_that_reach_it(words: int) -> None:
    """The four likeliest hold 0.4, 0.3, 0.2 and 0.1 of nine tenths; thousands more share what is left."""
    shares = torch.full((words,), 0.1 / max(1, words - 4))
    shares[:4] = torch.tensor([0.4, 0.3, 0.2, 0.1]) * (0.9 if words > 4 else 1.0)
    uniforms = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    logits = shares.log().repeat(200, 1)
    for top_p, kept in ((0.0, {0}), (0.3, {0}), (0.6, {0, 1}), (0.8, {0, 1, 2})):
        tokens, logprobs = draw(logits.clone(), uniforms, 1.0, dict.fromkeys(range(200), top_p))
        assert set(tokens.tolist()) == kept
        within = shares[list(kept)].sum()
        assert logprobs[0].item() == pytest.approx((shares[0] / within).log().item(), abs=1e-5)
    # Beyond what the likeliest thousand hold, the whole vocabulary is looked through.
    tokens, _ = draw(logits.clone(), uniforms, 1.0, dict.fromkeys(range(200), 0.999))
    assert int(tokens.max()) > min(words, 4000) - 5


def test_a_masked_token_is_never_drawn_not_even_at_the_ends() -> None:
    logits = torch.full((4, 700), float("-inf"))
    logits[:, 300:303] = torch.tensor([-40.0, 0.0, -40.0])
    ends = torch.tensor([1e-16, 0.25, 0.75, 1 - 1e-16], dtype=torch.float64)
    tokens, logprobs = draw(logits, ends, 1.0)
    assert set(tokens.tolist()) <= {300, 301, 302}
    assert bool(torch.isfinite(logprobs).all())


def test_a_single_choice_has_log_prob_zero() -> None:
    logits = torch.full((1, 10), float("-inf"))
    logits[0, 4] = -3.3
    tokens, logprobs = draw(logits, torch.tensor([0.5], dtype=torch.float64), 1.0)
    assert (tokens.item(), logprobs.item()) == (4, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_distribution_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1] = bad
    with pytest.raises(NonFinite):
        draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), 1.0)

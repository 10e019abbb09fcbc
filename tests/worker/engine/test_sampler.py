"""Sampling: the same answers and log-probs as the plain way, however rows and waves are put together."""

from dataclasses import replace

import pytest
import torch

from tests.worker.engine.conftest import Load, plain_logprobs, prompts_for
from worker.engine.errors import NonFinite
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample, waves
from worker.engine.types import Prompt, Rollout

SAMPLING = Sampling("train", 2, samples=3, max_tokens=24, temperature=1.0, seed=11)
TEXTS = ("a", "what is this? answer me", "bb", "12 12 12")


def answers(policy: Policy, prompts: list[Prompt], sampling: Sampling = SAMPLING) -> list[Rollout]:
    with policy.merged():
        return [rollout for wave in sample(policy, prompts, sampling) for rollout in wave]


# A random model hardly ever stops by itself: with many stop tokens, rows leave at different times.
MANY_STOPS = tuple(range(0, 264, 9))


def test_logprobs_are_those_of_the_plain_model(load: Load) -> None:
    policy = load(trained=True)
    policy.stop_ids = MANY_STOPS
    prompts = prompts_for(policy, *TEXTS)
    found = answers(policy, prompts)
    assert [(one.item_index, one.sample_index) for one in found] == [
        (i, k) for i in range(4) for k in range(3)
    ]
    assert len({len(one.token_ids) for one in found}) > 3
    for one in found:
        own = plain_logprobs(policy, prompts[one.item_index], one.token_ids).detach()
        torch.testing.assert_close(torch.tensor(one.logprobs), own, atol=1e-4, rtol=0)


def test_merged_sampling_equals_adapter_sampling(load: Load) -> None:
    policy = load(trained=True)
    prompts = prompts_for(policy, *TEXTS)
    merged = answers(policy, prompts)
    plain = [rollout for wave in sample(policy, prompts, SAMPLING) for rollout in wave]
    assert [one.token_ids for one in merged] == [one.token_ids for one in plain]


def test_greedy_answers_are_the_model_s_own_argmax(load: Load) -> None:
    policy = load(trained=True)
    prompts = prompts_for(policy, *TEXTS)
    for one in answers(policy, prompts, replace(SAMPLING, temperature=0.0, samples=1)):
        text = list(prompts[one.item_index].token_ids)
        with torch.no_grad():
            policy._causal.set_attn_implementation("eager")
            for token in one.token_ids:
                assert int(policy._causal(torch.tensor([text])).logits[0, -1].argmax()) == token
                text.append(token)
            policy._causal.set_attn_implementation("tunesmith")


@pytest.mark.parametrize("wave_tokens", [1, 400, 10_000])
def test_an_answer_does_not_depend_on_its_wave_or_its_company(load: Load, wave_tokens: int) -> None:
    policy = load(trained=True)
    policy.stop_ids = MANY_STOPS
    prompts = prompts_for(policy, *TEXTS)
    together = {(one.item_index, one.sample_index): one.token_ids for one in answers(policy, prompts)}
    policy.wave_tokens = wave_tokens
    for prompt in prompts:
        for one in answers(policy, [prompt]):
            assert together[one.item_index, one.sample_index] == one.token_ids
    assert {
        (one.item_index, one.sample_index): one.token_ids for one in answers(policy, prompts[::-1])
    } == together


def test_draws_differ_by_step_split_seed_and_sample(load: Load) -> None:
    policy = load()
    prompts = prompts_for(policy, "a")
    first = answers(policy, prompts)
    assert len({one.token_ids for one in first}) == 3
    for other in (replace(SAMPLING, step=3), replace(SAMPLING, split="valid"), replace(SAMPLING, seed=12)):
        assert [one.token_ids for one in answers(policy, prompts, other)] != [one.token_ids for one in first]


def test_stop_token_is_in_the_tokens_and_not_in_the_text(load: Load) -> None:
    policy = load(trained=True)
    found = answers(policy, prompts_for(policy, *TEXTS), replace(SAMPLING, samples=16, max_tokens=64))
    stopped = [one for one in found if one.finish_reason == "stop"]
    assert stopped
    for one in found:
        ends = one.token_ids[-1] in policy.stop_ids
        assert ends == (one.finish_reason == "stop")
        assert not any(token in policy.stop_ids for token in one.token_ids[:-1])
        assert len(one.token_ids) == len(one.logprobs) <= 64
        assert "<|im_end|>" not in one.text
        assert one.finish_reason == "stop" or len(one.token_ids) == 64


def test_nan_weights_are_reported_and_nothing_is_drawn(load: Load) -> None:
    policy = load()
    prompts = prompts_for(policy, "a", "b")
    with torch.no_grad():
        next(iter(policy.adapter.values())).fill_(float("nan"))
    with pytest.raises(NonFinite):
        answers(policy, prompts)


def test_waves_keep_the_budget_and_take_at_least_one_prompt() -> None:
    sampling = replace(SAMPLING, samples=2, max_tokens=10)
    assert waves([30, 30, 30], sampling, 100) == [slice(0, 2), slice(2, 3)]
    assert waves([30, 500, 30], sampling, 100) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert waves([], sampling, 100) == []
    assert [part.stop - part.start for part in waves([1] * 300, sampling, 10**9)] == [128, 128, 44]

"""The gradient: shared prefixes, chunks and micro-batches against the plain computation."""

from dataclasses import replace

import pytest
import torch

from tests.worker.engine.conftest import Load, plain_logprobs, prompts_for, settings
from worker.engine.advantages import group_advantages
from worker.engine.batches import Answer, Group
from worker.engine.errors import OutOfMemory
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.types import Prompt
from worker.engine.update import compute_gradient

CONFIG = settings()
WHOLE = 100_000


def graded_groups(
    policy: Policy, *, samples: int = 4, max_tokens: int = 12
) -> tuple[list[Prompt], list[Group]]:
    """Return groups with made-up rewards, sampled by the policy itself."""
    prompts = prompts_for(policy, "a", "longer than the others by far", "bb")
    sampling = Sampling("train", 1, samples, max_tokens, 1.0, 5)
    with policy.merged():
        rollouts = [rollout for wave in sample(policy, prompts, sampling) for rollout in wave]
    rewards = [[float((3 * i + 5 * k) % 4) for k in range(samples)] for i in range(3)]
    values = group_advantages(rewards).values
    groups = [
        Group(
            prompt.token_ids,
            tuple(
                Answer(
                    rollouts[i * samples + k].token_ids,
                    rollouts[i * samples + k].logprobs,
                    values[i][k] or 0.0,
                )
                for k in range(samples)
            ),
        )
        for i, prompt in enumerate(prompts)
    ]
    return prompts, groups


def gradient_of(policy: Policy) -> dict[str, torch.Tensor]:
    found = {
        name: parameter.grad.clone()
        for name, parameter in policy.adapter.items()
        if parameter.grad is not None
    }
    assert len(found) == len(policy.adapter)
    return found


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5 * max(scale, 1.0), rtol=1e-4, msg=name)


def test_shared_prefix_equals_plain(load: Load) -> None:
    policy = load(trained=True)
    prompts, groups = graded_groups(policy)
    figures, _ = compute_gradient(policy, groups, CONFIG, None, WHOLE)
    found = gradient_of(policy)
    for parameter in policy.adapter.values():
        parameter.grad = None
    tokens = sum(len(answer.token_ids) for group in groups for answer in group.answers)
    loss = torch.zeros(())
    for prompt, group in zip(prompts, groups, strict=True):
        for answer in group.answers:
            logprobs = plain_logprobs(policy, prompt, tuple(answer.token_ids))
            ratio = (logprobs - torch.tensor(answer.old_logprobs)).exp()
            loss = loss - (ratio * answer.advantage).sum() / tokens
    loss.backward()
    assert_close(found, gradient_of(policy))
    assert figures.loss == pytest.approx(loss.item(), abs=1e-5)
    assert figures.sampler_trainer_kl < 1e-6
    assert figures.clip_fraction == 0


@pytest.mark.parametrize("kl_beta", [0.0, 0.3])
@pytest.mark.parametrize("budget", [1, 60, 130])
def test_the_cut_into_micro_batches_changes_nothing(load: Load, budget: int, kl_beta: float) -> None:
    policy = load(trained=True)
    _, groups = graded_groups(policy)
    config = replace(CONFIG, kl_beta=kl_beta)
    whole, _ = compute_gradient(policy, groups, config, None, WHOLE)
    expected = gradient_of(policy)
    parts, fitted = compute_gradient(policy, groups, config, None, budget)
    assert fitted == budget
    assert_close(gradient_of(policy), expected)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
    assert parts.kl == pytest.approx(whole.kl, abs=1e-5)
    assert parts.entropy == pytest.approx(whole.entropy, abs=1e-5)


def test_kl_to_the_base_is_measured_against_the_model_without_adapter(load: Load) -> None:
    policy = load(trained=True)
    prompts, groups = graded_groups(policy)
    figures, _ = compute_gradient(policy, groups, replace(CONFIG, kl_beta=0.1), None, WHOLE)
    total, tokens = 0.0, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for answer in group.answers:
            own = plain_logprobs(policy, prompt, tuple(answer.token_ids)).detach()
            with policy.base():
                base = plain_logprobs(policy, prompt, tuple(answer.token_ids)).detach()
            total += ((base - own).exp() - (base - own) - 1).sum().item()
            tokens += len(answer.token_ids)
    assert figures.kl == pytest.approx(total / tokens, rel=1e-3)
    assert figures.kl > 0.01


def test_descent_raises_the_log_prob_of_the_better_answer(load: Load) -> None:
    policy = load(trained=True)
    prompts, groups = graded_groups(policy, samples=2)
    good, bad = groups[0].answers
    group = Group(groups[0].prompt, (replace(good, advantage=1.0), replace(bad, advantage=-1.0)))

    def gap() -> float:
        with torch.no_grad():
            sums = [
                plain_logprobs(policy, prompts[0], tuple(one.token_ids)).sum().item() for one in group.answers
            ]
        return sums[0] - sums[1]

    before = gap()
    compute_gradient(policy, [group], CONFIG, None, WHOLE)
    with torch.no_grad():
        for parameter in policy.adapter.values():
            assert parameter.grad is not None
            parameter.sub_(0.01 * parameter.grad)
    assert gap() > before


def test_temperature_is_part_of_the_trained_distribution(load: Load) -> None:
    policy = load(trained=True)
    prompts = prompts_for(policy, "a", "b")
    with policy.merged():
        sampling = Sampling("train", 1, 2, 8, 0.7, 5)
        rollouts = [rollout for wave in sample(policy, prompts, sampling) for rollout in wave]
    groups = [
        Group(
            prompt.token_ids,
            tuple(
                Answer(one.token_ids, one.logprobs, 1.0 - 2 * one.sample_index)
                for one in rollouts
                if one.item_index == prompt.item_index
            ),
        )
        for prompt in prompts
    ]
    figures, _ = compute_gradient(policy, groups, replace(CONFIG, temperature=0.7), None, WHOLE)
    assert figures.sampler_trainer_kl < 1e-6


def test_two_threads_add_up_in_one_order(load: Load) -> None:
    policy = load(trained=True)
    _, groups = graded_groups(policy, samples=16)
    torch.set_num_threads(2)
    try:
        found = set()
        for _ in range(12):
            compute_gradient(policy, groups, CONFIG, None, WHOLE)
            found.add(b"".join(tensor.numpy().tobytes() for tensor in gradient_of(policy).values()))
    finally:
        torch.set_num_threads(1)
    # All answers of a group begin at one state: where threads meet there, no order of theirs may show.
    assert len(found) == 1


class Memory:
    """The machine's memory: a forward over more tokens than fit fails as torch's would."""

    def __init__(self, policy: Policy, tokens: int, error: Exception) -> None:
        self.tokens, self.error = tokens, error
        policy._causal.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module: object, tokens: tuple[torch.Tensor]) -> None:
        if tokens[0].numel() > self.tokens:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(load: Load, error: Exception) -> None:
    policy = load(trained=True)
    _, groups = graded_groups(policy)
    compute_gradient(policy, groups, CONFIG, None, WHOLE)
    expected = gradient_of(policy)
    Memory(policy, 100, error)
    _, fitted = compute_gradient(policy, groups, CONFIG, None, 400)
    assert fitted == 100
    assert_close(gradient_of(policy), expected)


def test_out_of_memory_at_the_floor_gives_advice(load: Load) -> None:
    policy = load(trained=True)
    _, groups = graded_groups(policy)
    Memory(policy, 10, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory, match="smaller model"):
        compute_gradient(policy, groups, CONFIG, None, 400)


def test_another_error_is_not_taken_for_memory(load: Load) -> None:
    policy = load(trained=True)
    _, groups = graded_groups(policy)
    Memory(policy, 10, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        compute_gradient(policy, groups, CONFIG, None, 400)

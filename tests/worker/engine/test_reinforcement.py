"""The method end to end on a tiny random model: it learns, it is exact, it stops, it survives bad numbers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.conftest import Load, prompts_for, settings
from worker.engine import reinforcement
from worker.engine.errors import CheckpointRefused, NumericalInstability
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt, Rollout, Score, StepMetrics, StepReport
from worker.engine.update import Gradient

TEXTS = ("a", "bb", "what now", "12", "order 7")


def letters(rollouts: Sequence[Rollout]) -> list[float | None]:
    """Grade like a string check: the share of an answer's tokens that are small letters of the first half."""
    return [sum("a" <= letter <= "m" for letter in one.text) / len(one.token_ids) for one in rollouts]


def start(
    load: Load,
    score: Score = letters,
    *,
    resume: Path | None = None,
    resume_sha256: str | None = None,
    valid: bool = False,
    **changes: Any,
) -> Reinforcement:
    policy = load(**changes)
    prompts = prompts_for(policy, *TEXTS)
    return Reinforcement(
        policy,
        train_prompts=prompts,
        valid_prompts=prompts[:2] if valid else (),
        score=score,
        config=settings(**changes),
        resume=resume,
        resume_sha256=resume_sha256,
    )


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.adapter.items()}


def same(policy: Policy, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(parameter, expected[name]) for name, parameter in policy.adapter.items())


def timeless(report: StepReport) -> tuple[object, ...]:
    names = [name for name in StepMetrics.__slots__ if not name.endswith("seconds")]
    validation = report.validation.rollouts if report.validation else None
    return (report.step, report.rollouts, validation, *(getattr(report.metrics, name) for name in names))


def test_a_random_model_learns_a_string_check(load: Load) -> None:
    run = start(load, total_steps=25, samples_per_prompt=8, learning_rate=1e-2, lora_rank=8)
    rewards = [report.metrics.reward_mean for report in run.steps()]
    first, last = rewards[:3], rewards[-3:]
    assert max(reward for reward in first if reward is not None) < 0.3
    assert min(reward for reward in last if reward is not None) > 0.6


def test_steps_counts_and_order(load: Load) -> None:
    run = start(load, valid=True, eval_interval=2, total_steps=5)
    reports = list(run.steps())
    assert [report.step for report in reports] == [0, 1, 2, 3, 4, 5]
    assert [report.validation is not None for report in reports] == [True, False, True, False, True, True]
    assert reports[0].rollouts == ()
    # Five prompts, three a step: the second batch of an epoch holds the rest.
    assert [report.metrics.groups for report in reports] == [0, 3, 2, 3, 2, 3]
    items = [[scored.rollout.item_index for scored in report.rollouts[::4]] for report in reports[1:]]
    assert sorted(items[0] + items[1]) == sorted(items[2] + items[3]) == [0, 1, 2, 3, 4]
    assert items[0] + items[1] != items[2] + items[3]
    assert run.step == 5


def test_step_0_is_the_base_model_whatever_the_adapter(load: Load) -> None:
    first = next(start(load, valid=True).steps())
    assert first.validation is not None
    assert first.validation.step == 0
    assert {scored.rollout.split for scored in first.validation.rollouts} == {"valid"}


def test_equal_rewards_leave_the_weights_untouched(load: Load) -> None:
    run = start(load, lambda rollouts: [0.5] * len(rollouts))
    before = weights(run.policy)
    reports = list(run.steps())
    assert same(run.policy, before)
    for report in reports:
        assert report.metrics.groups_without_signal == report.metrics.groups
        assert {scored.advantage for scored in report.rollouts} == {0.0}
        assert not report.metrics.skipped


def test_empty_answers_are_graded_and_trained_like_any_other(load: Load) -> None:
    policy = load()
    # Every token ends an answer, so each is one token long and its text is empty.
    policy.stop_ids = tuple(range(policy.vocabulary))
    heard: list[str] = []

    def by_place(rollouts: Sequence[Rollout]) -> list[float | None]:
        heard.extend(one.text for one in rollouts)
        return [float(one.sample_index == 0) for one in rollouts]

    prompts = prompts_for(policy, *TEXTS)
    run = Reinforcement(policy, train_prompts=prompts, valid_prompts=(), score=by_place, config=settings())
    before = weights(policy)
    metrics = next(run.steps()).metrics
    assert heard == [""] * 12
    assert metrics.completion_tokens_mean == 1
    assert metrics.truncated_fraction == 0
    assert metrics.graded == 12
    assert not same(policy, before)


def test_a_nan_grade_is_excluded_not_zero(load: Load) -> None:
    def with_holes(hole: float | None) -> Score:
        return lambda rollouts: [
            hole if one.sample_index == 1 else float(one.sample_index > 1) for one in rollouts
        ]

    report = next(start(load, with_holes(float("nan"))).steps())
    assert report.metrics.graded == 9
    assert report.metrics.reward_mean == pytest.approx(2 / 3)
    holes = [scored for scored in report.rollouts if scored.rollout.sample_index == 1]
    assert {(scored.reward, scored.advantage) for scored in holes} == {(None, None)}
    # The others' advantages: mean 2/3, so -2/3 and 1/3 over the deviation sqrt(2)/3.
    others = {
        round(scored.advantage or 0, 4) for scored in report.rollouts if scored.rollout.sample_index != 1
    }
    assert others == {round(-(2**0.5), 4), round(0.5**0.5, 4)}
    none = next(start(load, with_holes(None)).steps())
    assert timeless(none) == timeless(report)


def test_closing_stops_between_steps_and_the_run_can_go_on(load: Load) -> None:
    whole, halves = start(load), start(load)
    expected = [timeless(report) for report in whole.steps()]
    stepping = halves.steps()
    found = [timeless(report) for report in islice(stepping, 2)]
    stepping.close()  # type: ignore[attr-defined]
    assert halves.step == 2
    assert next(stepping, None) is None
    found += [timeless(report) for report in halves.steps()]
    assert found == expected
    assert same(halves.policy, weights(whole.policy))


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_stop_and_resume_is_exact_to_the_bit(load: Load, tmp_path: Path, stop: int) -> None:
    whole = start(load, valid=True)
    expected = [timeless(report) for report in whole.steps()]
    first = start(load, valid=True)
    found = [timeless(report) for report in islice(first.steps(), stop + 1)]
    digest = first.save_checkpoint(tmp_path / f"step-{stop}")
    assert len(digest) == 64
    second = start(load, valid=True, resume=tmp_path / f"step-{stop}")
    assert second.step == stop
    found += [timeless(report) for report in second.steps()]
    assert found == expected
    assert same(second.policy, weights(whole.policy))
    assert second.notes == []


def test_a_checkpoint_of_another_run_is_refused(load: Load, tmp_path: Path) -> None:
    run = start(load)
    next(run.steps())
    run.save_checkpoint(tmp_path / "one")
    with pytest.raises(CheckpointRefused, match="learning_rate"):
        start(load, resume=tmp_path / "one", learning_rate=1e-3)
    with pytest.raises(CheckpointRefused, match="prompts"):
        Reinforcement(
            load(),
            train_prompts=prompts_for(run.policy, "other"),
            valid_prompts=(),
            score=letters,
            config=settings(),
            resume=tmp_path / "one",
        )


def test_another_base_model_under_the_same_name_is_refused_by_the_probe(load: Load, tmp_path: Path) -> None:
    run = start(load)
    next(run.steps())
    run.save_checkpoint(tmp_path / "one")
    moved = load()
    with torch.no_grad():
        moved._causal.get_input_embeddings().weight.add_(0.02)
    with pytest.raises(CheckpointRefused, match="log-probs differ"):
        Reinforcement(
            moved,
            train_prompts=run.train_prompts,
            valid_prompts=(),
            score=letters,
            config=settings(),
            resume=tmp_path / "one",
        )


def test_another_thread_count_is_noted(load: Load, tmp_path: Path) -> None:
    run = start(load)
    next(run.steps())
    run.save_checkpoint(tmp_path / "one")
    resumed = start(load, resume=tmp_path / "one", threads=2)
    torch.set_num_threads(1)
    assert resumed.notes == ["resume not exact to the bit: threads was 1, is 2"]


def poison(policy: Policy) -> None:
    with torch.no_grad():
        next(iter(policy.adapter.values())).fill_(float("nan"))


def test_bad_weights_roll_back_then_halve_then_end(load: Load) -> None:
    run = start(load, total_steps=12)
    stepping = run.steps()
    next(stepping)
    before_second = weights(run.policy)
    next(stepping)
    poison(run.policy)
    skipped = next(stepping)
    assert skipped.metrics.skipped
    assert skipped.rollouts == ()
    assert same(run.policy, before_second)
    healthy = next(stepping)
    assert not healthy.metrics.skipped
    assert healthy.metrics.learning_rate == settings().learning_rate
    poison(run.policy)
    assert next(stepping).metrics.skipped
    healthy = next(stepping)
    assert healthy.metrics.learning_rate == settings().learning_rate / 2
    assert healthy.metrics.grad_norm > 0
    poison(run.policy)
    with pytest.raises(NumericalInstability):
        next(stepping)
    assert len(run.notes) == 2


def test_a_last_update_that_can_not_be_validated_is_taken_back(load: Load) -> None:
    """Else its weights would be published."""
    run = start(load, total_steps=2, eval_interval=5, valid=True)
    stepping = run.steps()
    next(stepping)
    next(stepping)
    before = weights(run.policy)
    apply = run.optimizer.apply

    def apply_badly() -> float | None:
        norm = apply()
        with torch.no_grad():
            for parameter in run.policy.adapter.values():
                parameter.fill_(1e30)
        return norm

    run.optimizer.apply = apply_badly  # type: ignore[method-assign]
    last = next(stepping)
    assert same(run.policy, before)
    assert last.validation is not None
    assert last.metrics.skipped
    assert [note.partition(";")[2] for note in run.notes] == [" the weights were rolled back"]


def test_a_loss_that_is_not_finite_leaves_no_figure_behind(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database need not take what is no number."""
    run = start(load)
    monkeypatch.setattr(
        reinforcement, "compute_gradient", lambda *_: (Gradient(float("inf"), float("nan")), 2048)
    )
    before = weights(run.policy)
    report = next(run.steps())
    assert (report.metrics.loss, report.metrics.kl, report.metrics.skipped) == (0.0, 0.0, True)
    assert same(run.policy, before)
    assert run.notes == ["step 1: the loss is not finite; the update was skipped"]


def test_a_changed_manifest_is_refused(load: Load, tmp_path: Path) -> None:
    run = start(load)
    next(run.steps())
    told = run.save_checkpoint(tmp_path / "one")
    manifest = tmp_path / "one" / "manifest.json"
    assert start(load, resume=tmp_path / "one", resume_sha256=told).step == 1
    written = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**written, "guard": {**written["guard"], "learning_rate_scale": 0.5}}))
    with pytest.raises(CheckpointRefused, match=r"manifest\.json in one is not the file that was saved"):
        start(load, resume=tmp_path / "one", resume_sha256=told)
    del written["probe"]
    manifest.write_text(json.dumps(written))
    with pytest.raises(CheckpointRefused, match="one is not a whole checkpoint"):
        start(load, resume=tmp_path / "one")


def test_a_gradient_that_is_not_finite_is_skipped_and_said(load: Load) -> None:
    run = start(load)
    parameter = next(iter(run.policy.adapter.values()))
    handle = parameter.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(run.policy)
    stepping = run.steps()
    report = next(stepping)
    assert report.metrics.skipped
    assert len(report.rollouts) == 12
    assert same(run.policy, before)
    handle.remove()
    assert not next(stepping).metrics.skipped
    assert run.notes == ["step 1: the gradient is not finite; the update was skipped"]


def test_running_out_of_memory_is_noted_kept_and_exact_after_a_resume(load: Load, tmp_path: Path) -> None:
    def limited(run: Reinforcement) -> Reinforcement:
        def check(module: object, tokens: tuple[torch.Tensor]) -> None:
            if torch.is_grad_enabled() and tokens[0].numel() > 75:
                raise torch.OutOfMemoryError("CUDA out of memory")

        run.policy._causal.get_input_embeddings().register_forward_pre_hook(check)
        return run

    whole = limited(start(load, max_completion_tokens=12))
    list(whole.steps())
    assert [note.split("; ")[0] for note in whole.notes] == ["step 1: out of memory"] * 2
    assert not whole.keeps_tape
    assert whole.micro_batch_tokens < 2048
    first = limited(start(load, max_completion_tokens=12))
    next(first.steps())
    first.save_checkpoint(tmp_path / "one")
    second = limited(start(load, max_completion_tokens=12, resume=tmp_path / "one"))
    assert second.micro_batch_tokens == whole.micro_batch_tokens
    list(second.steps())
    assert second.notes == []  # what was said before is not said again
    assert same(second.policy, weights(whole.policy))


def test_prompts_that_cannot_be_answered_are_named(load: Load) -> None:
    policy = load()
    good = prompts_for(policy, "a")
    for bad, reason in ((Prompt(3, ()), "empty"), (Prompt(3, (5,) * 4095), "at most 4096")):
        with pytest.raises(ValueError, match=f"item 3.*{reason}"):
            Reinforcement(
                policy, train_prompts=[*good, bad], valid_prompts=(), score=letters, config=settings()
            )
    with pytest.raises(ValueError, match="nothing to train on"):
        Reinforcement(policy, train_prompts=(), valid_prompts=(), score=letters, config=settings())


def test_kl_holds_the_policy_near_the_base(load: Load) -> None:
    def last_kl(beta: float) -> float:
        config = replace(settings(total_steps=8), kl_beta=beta)
        policy = load()
        prompts = prompts_for(policy, *TEXTS)
        run = Reinforcement(policy, train_prompts=prompts, valid_prompts=(), score=letters, config=config)
        return list(run.steps())[-1].metrics.kl

    assert last_kl(5.0) < 0.5 * last_kl(1e-6)

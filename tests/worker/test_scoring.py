"""The scorer: rewards in order from graders that run at once, tries, policies, and what is dropped."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from app.graders.grade import grade
from app.graders.result import Grade
from app.graders.spec import parse_grader
from tests.worker.conftest import GRADER
from tests.worker.graders_at_fault import CRASHED, JUDGE_DOWN, SANDBOX_DIED, Outage, answer
from worker import scoring
from worker.engine.types import Rollout
from worker.grader_faults import GraderFailing
from worker.scoring import Scorer

# The pause rule has its own tests.
NO_LIMIT = scoring.Limits(1.0, 1.0, 1000)


def scorer(*, limits: scoring.Limits = NO_LIMIT, zero: bool = False, concurrency: int = 4) -> Scorer:
    """Return a scorer of ten items that all want an a."""
    items = {index: {"letter": "a", "index": index} for index in range(10)}
    return Scorer(
        parse_grader(GRADER),
        {"train": items, "valid": items},
        json_expected=False,
        errors_are_zero=zero,
        concurrency=concurrency,
        limits=limits,
    )


def answers(count: int, **where: Any) -> list[Rollout]:
    """Return one answer an item, right for even items."""
    return [answer("b" if index % 2 else "a", item=index, **where) for index in range(count)]


def intercept(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Call `before(item)` in front of every grade."""

    def intercepted(*arguments: Any, **named: Any) -> Grade:
        before(named["item"])
        return grade(*arguments, **named)

    monkeypatch.setattr(scoring, "grade", intercepted)


def test_rewards_come_in_the_answers_order_whichever_grade_came_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first answer's grade waits for all others."""
    done = threading.Semaphore(0)

    def last_first(item: Any) -> None:
        if item["index"]:
            done.release()
        else:
            for _ in range(5):
                assert done.acquire(timeout=60)

    intercept(monkeypatch, last_first)
    with scorer() as score:
        given = answers(6)
        assert score(given) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
        assert [score.take(one).reward for one in given] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]


def test_as_many_are_graded_at_once_as_allowed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four meet at a barrier, which three could never pass; a fifth is never seen beside them."""
    barrier, lock = threading.Barrier(4), threading.Lock()
    running = most = 0

    def meet(_item: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(timeout=60)
        with lock:
            running -= 1

    intercept(monkeypatch, meet)
    with scorer(concurrency=4) as score:
        score(answers(8))
    assert most == 4


def test_an_answer_begun_early_is_graded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun while sampling is collected, the rest is graded then."""
    seen: list[int] = []
    intercept(monkeypatch, lambda item: seen.append(item["index"]))
    with scorer() as score:
        given = answers(6)
        for one in given[:4]:
            score.begin(one)
        assert score(given) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


def test_answers_of_a_skipped_step_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that broke off while sampling leaves nothing that a later one could take for its own."""
    with scorer() as score:
        score.begin(answer("a", item=1, step=1))
        assert score([answer("b", item=1, step=2)]) == [0.0]
        assert score([answer("b", item=1, step=1)]) == [0.0]


def test_a_sandbox_that_died_is_tried_again_and_the_answer_gets_its_own_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Down twice, then up: the grade is real."""
    down = iter([SANDBOX_DIED, SANDBOX_DIED])
    monkeypatch.setattr(scoring, "BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(scoring, "grade", lambda *given, **named: next(down, None) or grade(*given, **named))
    with scorer() as score:
        assert score(answers(1)) == [1.0]
    assert next(down, None) is None


@pytest.mark.parametrize(
    ("failure", "zero", "reward", "tries"),
    [
        (SANDBOX_DIED, False, None, 3),
        (SANDBOX_DIED, True, None, 3),
        (JUDGE_DOWN, False, None, 1),
        (JUDGE_DOWN, True, None, 1),
        (CRASHED, False, None, 1),
        (CRASHED, True, 0.0, 1),
    ],
)
def test_whose_fault_decides_the_worth_and_whether_to_try_again(
    monkeypatch: pytest.MonkeyPatch, failure: Grade, zero: bool, reward: float | None, tries: int
) -> None:
    """Infrastructure is never 0. A grader that crashed would crash again; a judge was asked again already."""
    outage = Outage(failure).install(monkeypatch)
    with scorer(zero=zero) as score:
        given = answers(1)
        assert score(given) == [reward]
        # What is kept says what happened, whatever it was worth.
        assert score.take(given[0]) == failure
    assert outage.calls == tries


def test_a_hopeless_step_is_refused_without_grading_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of ten failed: the fourth is under way, the others are never begun."""
    outage = Outage(CRASHED).install(monkeypatch)
    refused = threading.Event()

    def slow_from_the_fourth(*arguments: Any, **named: Any) -> Grade:
        if outage.calls >= 3:
            assert refused.wait(timeout=60)
        return outage(*arguments, **named)

    monkeypatch.setattr(scoring, "grade", slow_from_the_fourth)
    with scorer(limits=scoring.Limits(), concurrency=1) as score:
        with pytest.raises(GraderFailing):
            score(answers(10))
        refused.set()
    assert outage.calls <= 4


@pytest.mark.parametrize(("split", "bad"), [("train", 1), ("valid", 0)])
def test_only_training_steps_are_bad_in_a_row(monkeypatch: pytest.MonkeyPatch, split: str, bad: int) -> None:
    """Two failures in ten are borne once; a validation between two steps ends no row and begins none."""
    Outage(CRASHED, lambda item: item["index"] < 2).install(monkeypatch)
    with scorer(limits=scoring.Limits()) as score:
        score(answers(10, split=split))
        assert score.bad_steps == bad


def test_leaving_ends_waiting_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that stops does not sit out the pauses before a sandbox is tried again."""
    tried = threading.Event()

    def down(*_arguments: Any, **_named: Any) -> Grade:
        tried.set()
        return SANDBOX_DIED

    monkeypatch.setattr(scoring, "grade", down)
    monkeypatch.setattr(scoring, "BACK_OFF", (3600.0,))
    score = scorer()
    with score:
        score.begin(answer())
        assert tried.wait(timeout=60)
    assert not any(thread.name.startswith("grader") for thread in threading.enumerate())


def test_nothing_to_grade_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty split has no rewards and no refusal."""
    nothing: Sequence[Rollout] = []
    with scorer(limits=scoring.Limits()) as score:
        assert score(nothing) == []

"""What a trial reports, on grades worked out by hand, and that it ends in time."""

from typing import Any

import pytest

from app.graders.means import NO_MEANS
from app.graders.probes import Expectation, Probe
from app.graders.result import Grade, GradeErrors
from app.graders.spec import parse_grader
from app.services.trial_report import Answer, Graded, Probed
from app.services.trials import Trial, run
from tests.factories import GRADER


def _graded(*rewards: float | None, items: list[int] | None = None) -> Graded:
    places = items or [0] * len(rewards)
    return Graded([(Answer(item, "x", {}), Grade(r)) for item, r in zip(places, rewards, strict=True)])


def test_the_distribution() -> None:
    rewards = _graded(0.0, 0.5, 0.5, 1.0, None).report()["rewards"]
    assert (rewards["graded"], rewards["missing"], rewards["distinct"]) == (4, 1, 3)
    assert (rewards["mean"], rewards["min"], rewards["max"]) == (0.5, 0.0, 1.0)
    assert rewards["std"] == pytest.approx(0.125**0.5)
    assert [bar["count"] for bar in rewards["histogram"]] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 1]


def test_the_histogram_holds_every_reward() -> None:
    bars = _graded(-2.0, 0.0, 8.0).report()["rewards"]["histogram"]
    assert (bars[0]["from"], bars[-1]["to"]) == (-2.0, 8.0)
    assert sum(bar["count"] for bar in bars) == 3


def test_rewards_too_large_to_sum() -> None:
    rewards = _graded(1e308, 1e308, -1e308).report()["rewards"]
    assert (rewards["min"], rewards["max"], rewards["distinct"]) == (-1e308, 1e308, 2)
    assert (rewards["mean"], rewards["std"], rewards["histogram"]) == (None, None, [])


def test_a_part_that_was_down_breaks_no_expectation() -> None:
    down = Grade(None, fault="infrastructure", errors=GradeErrors(model_grader_server_error=True))
    report = Graded([], [Probed(0, Probe("empty", "", "lower"), down)]).report()
    assert report["probes"][0]["holds"] is None


def test_nothing_graded() -> None:
    report = _graded(None).report()
    assert report["rewards"] == {"graded": 0, "missing": 1}
    assert report["prompts"] == {"n": 0, "with_several_answers": 0, "mixed": 0, "mixed_share": None}
    assert Graded([]).report()["latency"] == {"p50": None, "p95": None, "max": None}


def test_prompts_that_teach() -> None:
    report = _graded(0.0, 1.0, 1.0, 1.0, 0.5, None, 0.5, items=[0, 0, 1, 1, 2, 3, 3]).report()
    assert report["prompts"] == {"n": 4, "with_several_answers": 2, "mixed": 1, "mixed_share": 0.5}


def test_errors_are_counted_by_kind_and_fault() -> None:
    broken = Grade(None, fault="grader", errors=GradeErrors(other_error=True), message="no")
    wrong = Grade(0.0, fault="answer", errors=GradeErrors(sample_parse_error=True), message="not JSON")
    answer = Answer(0, "x", {})
    assert Graded([(answer, wrong), (answer, broken), (answer, wrong)]).report()["errors"] == [
        {"error": "sample_parse_error", "fault": "answer", "count": 2, "example": "not JSON"},
        {"error": "other_error", "fault": "grader", "count": 1, "example": "no"},
    ]


@pytest.mark.parametrize(
    ("expected", "reward", "right", "best", "holds"),
    [
        ("best", 1.0, None, None, True),
        ("best", 0.0, None, None, False),
        ("best", 0.5, None, 0.75, False),
        ("best", 0.75, None, 0.75, True),
        ("same", 0.5, 0.5, None, True),
        ("same", 0.0, 0.5, None, False),
        ("same", 0.5, None, 0.5, None),
        ("lower", 0.0, 1.0, None, True),
        ("lower", 1.0, 1.0, None, False),
        ("lower", 0.0, None, 0.5, True),
        ("lower", 0.5, None, 0.5, False),
        ("lower", 0.0, None, None, None),
        ("lower", None, 1.0, 1.0, False),
        ("best", None, None, None, False),
    ],
)
def test_expectations(
    expected: Expectation, reward: float | None, right: float | None, best: float | None, holds: bool | None
) -> None:
    answers = [] if best is None else [(Answer(0, "x", {}), Grade(best))]
    probes = [Probed(0, Probe("tried", "x", expected), Grade(reward))]
    if right is not None:
        probes.append(Probed(0, Probe("reference", "y", "best"), Grade(right)))
    assert Graded(answers, probes).report()["probes"][0]["holds"] is holds


def test_a_trial_out_of_time_says_so() -> None:
    item: dict[str, Any] = {"answer": "4"}
    trial = Trial({0: (item, "")}, [Answer(0, "4", item)], None, False)
    assert run(parse_grader(GRADER), trial, NO_MEANS)["rewards"]["mean"] == 1.0
    late = run(parse_grader(GRADER), trial, NO_MEANS, seconds=0.0)
    assert late["rewards"] == {"graded": 0, "missing": 1}
    assert late["errors"][0]["example"] == "The trial's time was over."

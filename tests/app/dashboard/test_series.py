"""Metrics events as points, meters and sentences; a verdict never says more than its interval."""

import random

import pytest

from app.core.tables import Event
from app.dashboard import series
from app.dashboard.verdict import sentence
from tests.app.dashboard.seed_steps import metrics


def event(step: int, *, valid: float | None = None, silent: int | None = None) -> Event:
    """Return a metrics event that is in no database."""
    data = metrics(step, 20, random.Random(step), valid=valid)
    if silent is not None:
        data["tunesmith"] |= {"groups_without_signal": silent}  # type: ignore[operator]
    return Event(seq=step, type="metrics", data=data)


def test_a_step_told_twice_is_one_point() -> None:
    points = series.points_of([event(1, valid=0.1), event(2), event(1, valid=0.7)])
    assert [(p.step, p.valid) for p in points] == [(1, 0.7), (2, None)]


def test_odd_data_makes_no_point_and_no_error() -> None:
    odd = [{}, {"step": "1"}, {"step": True}, {"step": float("nan")}]
    assert [series.point(data) for data in odd] == [None] * 4
    assert series.point({"step": 3, "scores": None, "tunesmith": {"valid_ci95": [1]}}) == series.Point(
        3, None, None, None, None
    )


def test_reading_names_the_best() -> None:
    points = series.points_of([event(0, valid=0.3), event(5, valid=0.6), event(10, valid=0.5)])
    chart = series.chart(points, waiting="")
    assert chart.reading == "Validation 0.50 at step 10, best 0.60 at step 5"
    assert chart.last_valid == "0.5000"


def test_low_signal_warns_after_three_steps() -> None:
    low = [event(step, silent=7) for step in (1, 2, 3)]
    assert series.meters(low[:2])[0].warning is None
    assert series.meters(low)[0].warning is not None
    assert series.meters([*low, event(4, silent=2)])[0].warning is None


def test_a_solved_task_needs_no_warning() -> None:
    low = [event(step, silent=8) for step in (1, 2, 3)]
    low[-1].data["scores"]["train_reward_mean"] = 0.97
    assert series.meters(low)[0].warning is None


def test_meter_parts_make_the_whole() -> None:
    for meter in series.meters([event(step) for step in range(1, 12)]):
        assert sum(part.width for part in meter.parts) == pytest.approx(100, abs=0.1)


def test_step_zero_is_no_training_step() -> None:
    assert series.meters([event(0, valid=0.2)]) == ()
    assert series.latest([event(0, valid=0.2)]) == ()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.21, 0.41, "Better than the base model: +31 points, 95% CI +21 to +41."),
        (-0.05, 0.09, "No clear difference from the base model"),
        (-0.4, -0.1, "Worse than the base model"),
    ],
)
def test_verdict_follows_the_interval(low: float, high: float, words: str) -> None:
    assert sentence({"mean": 0.31, "ci95": [low, high]}).startswith(words)


def test_spark_needs_two_points() -> None:
    assert series.spark([(0, 0.3)]) == (None, None)
    line, end = series.spark([(0, 0.0), (5, 1.0), (10, 0.5)])
    assert line == "M0.0 17.0L30.0 1.0L60.0 9.0"
    assert end == (60.0, 9.0)

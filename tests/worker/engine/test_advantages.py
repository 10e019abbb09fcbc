"""Advantages against numbers worked by hand."""

import math

import pytest

from worker.engine.advantages import ESTIMATORS, group_advantages


def test_hand_worked_groups() -> None:
    # Rewards 1, 0, 1, 1: mean 0.75, variance 3/16, so the batch deviation is sqrt(3)/4.
    found = group_advantages([[1.0, 0.0], [1.0, 1.0]])
    scale = math.sqrt(3) / 4
    assert found.values == ((pytest.approx(0.5 / scale), pytest.approx(-0.5 / scale)), (0.0, 0.0))
    assert found.teaching == (0,)


def test_the_deviation_is_the_batch_s_not_the_group_s() -> None:
    # The second group's answers are ten times closer together; their advantages must be ten times smaller.
    found = group_advantages([[1.0, 0.0], [0.55, 0.45]])
    assert found.values[1][0] == pytest.approx(found.values[0][0] / 10)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_missing_grade_is_left_out_and_not_zero(missing: float | None) -> None:
    found = group_advantages([[1.0, missing, 0.0], [0.5, 0.5, missing]])
    assert found.values[0][1] is None
    # Were it a zero, the mean would be a third and the two would not mirror each other.
    assert found.values[0][0] == pytest.approx(-found.values[0][2])
    assert found.values[1] == (0.0, 0.0, None)
    assert found.teaching == (0,)


def test_a_group_with_one_grade_left_teaches_nothing() -> None:
    found = group_advantages([[1.0, None], [0.0, 1.0], [None, None]])
    assert found.values[0] == (0.0, None)
    assert found.values[2] == (None, None)
    assert found.teaching == (1,)


def test_nothing_graded_at_all() -> None:
    assert group_advantages([[None, None]]).teaching == ()


def test_rounding_is_no_spread() -> None:
    assert group_advantages([[0.1 + 0.2, 0.3], [0.0, 1.0]]).teaching == (1,)


def test_leave_one_out_by_hand() -> None:
    # Rewards 3, 0, 0: the others' means are 0, 1.5 and 1.5. No division: twice the rewards, twice the values.
    found = group_advantages([[3.0, 0.0, 0.0], [1.0, 1.0]], "leave_one_out")
    assert found.values == ((3.0, -1.5, -1.5), (0.0, 0.0))
    twice = group_advantages([[6.0, 0.0, 0.0]], "leave_one_out")
    assert twice.values == ((6.0, -3.0, -3.0),)


def test_leave_one_out_leaves_a_missing_grade_out_of_the_others_too() -> None:
    found = group_advantages([[1.0, None, 0.0]], "leave_one_out")
    assert found.values == ((1.0, None, -1.0),)


def test_group_normalised_by_hand() -> None:
    # 3, 0, 0: mean 1, variance (4 + 1 + 1) / 3 = 2. The other group's small spread weighs as much.
    found = group_advantages([[3.0, 0.0, 0.0], [0.55, 0.45]], "group_normalised")
    assert found.values[0] == pytest.approx((2 / math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2)))
    assert found.values[1] == pytest.approx((1.0, -1.0))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_sums_to_zero_and_skips_what_teaches_nothing(estimator: str) -> None:
    rewards = [[0.2, 0.9, None, 0.4], [0.5, 0.5, 0.5, 0.5], [1.0, None, None, None], [0.0, 1.0, 1.0, 1.0]]
    found = group_advantages(rewards, estimator)
    assert found.teaching == (0, 3)
    assert found.values[1:3] == ((0.0, 0.0, 0.0, 0.0), (0.0, None, None, None))
    for index in found.teaching:
        present = [value for value in found.values[index] if value is not None]
        assert sum(present) == pytest.approx(0.0, abs=1e-12)
        assert max(present) > 0 > min(present)
    assert group_advantages([[None, None]], estimator).teaching == ()

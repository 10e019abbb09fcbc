"""Draws by name: stable for ever, different for different names, uniform."""

from statistics import fmean

import pytest

from worker.engine.seeds import derive, shuffled, uniform


def test_a_name_has_one_number_for_ever() -> None:
    # Changing these numbers would change what every stored seed means.
    assert derive(1, "order", 0) == 445740416922298889
    assert uniform(1, "train", 1, 0, 0, 0) == 0.174619751209809


def test_names_do_not_run_into_each_other() -> None:
    names = [(1, "a", 1, 11), (1, "a", 11, 1), (11, "a", 1, 1), (1, "a1", 1, 1), (1, "b", 1, 11)]
    assert len({derive(*name) for name in names}) == len(names)


def test_uniforms_fill_the_open_interval_evenly() -> None:
    draws = [uniform(5, "train", 1, 2, 3, place) for place in range(20_000)]
    assert 0 < min(draws) < 0.001
    assert 0.999 < max(draws) < 1
    assert fmean(draws) == pytest.approx(0.5, abs=0.01)
    assert fmean(draw * draw for draw in draws) == pytest.approx(1 / 3, abs=0.01)


def test_a_shuffle_holds_every_index_once_and_differs_by_epoch() -> None:
    first, second = shuffled(50, 1, "order", 0), shuffled(50, 1, "order", 1)
    assert sorted(first) == list(range(50)) == sorted(second)
    assert first != second
    assert first == shuffled(50, 1, "order", 0)

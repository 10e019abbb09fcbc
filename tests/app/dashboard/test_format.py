"""Figures as a person reads them."""

import pytest

from app.dashboard import format

NOW = 1_763_800_000.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.04, "40 ms"),
        (4.12, "4.1 s"),
        (59.4, "59 s"),
        (252, "4 min 12 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float | None, words: str) -> None:
    assert format.duration(seconds) == words


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (3, "just now"),
        (120, "2 min ago"),
        (3 * 3600, "3 h ago"),
        (2 * 86400, "2 d ago"),
        (19 * 86400, "3 Nov"),
    ],
)
def test_ago(passed: float, words: str) -> None:
    assert format.ago(NOW - passed, NOW) == words


def test_signs_are_real_minus_signs() -> None:
    assert format.points(-0.05) == "−5"
    assert format.points(0.314) == "+31"
    assert format.points(-0.001) == "0"
    assert format.signed(-0.75) == "−0.75"
    assert format.score(-0.5) == "−0.500"
    assert format.compact(0.0001) == "1e−4"


def test_missing_figures_are_a_dash() -> None:
    assert format.percent(None) == format.score(None) == format.size(None) == format.count(None) == "–"


@pytest.mark.parametrize(
    ("amount", "words"), [(0, "0 bytes"), (999, "999 bytes"), (36_700, "36.7 kB"), (538_060_032, "538.1 MB")]
)
def test_size(amount: int, words: str) -> None:
    assert format.size(amount) == words


def test_middle_keeps_both_ends() -> None:
    short = format.middle("ftjob-7f2c91ab03e84dXYZ", 12)
    assert len(short) == 12
    assert short.startswith("ftjob-") and short.endswith("dXYZ")


def test_about_is_coarse() -> None:
    assert [format.about(s) for s in (20, 130, 7000)] == ["under a minute", "2 min", "1.9 h"]

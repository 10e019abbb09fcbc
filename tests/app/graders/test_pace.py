"""A pace is kept across threads: the shortest time a number of turns may take."""

import time
from concurrent.futures import ThreadPoolExecutor

from app.graders.pace import Pace, pace_of, seats_of


def test_turns_are_spread_evenly_across_threads() -> None:
    pace = Pace(6_000)  # one each 10 ms
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: pace.wait(), range(11)))
    assert time.monotonic() - started >= 0.1


def test_no_limit_keeps_nobody_waiting() -> None:
    pace = Pace(0)
    pace.wait()
    assert pace == Pace(0, pace._lock)


def test_whoever_asks_a_service_shares_its_limits() -> None:
    assert pace_of("https://a.example", 60) is pace_of("https://a.example", 60)
    assert pace_of("https://a.example", 60) is not pace_of("https://b.example", 60)
    assert seats_of("https://a.example", 2) is seats_of("https://a.example", 2)
    assert seats_of("https://a.example", 2) is not seats_of("https://a.example", 3)

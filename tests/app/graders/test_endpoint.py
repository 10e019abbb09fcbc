"""Endpoint graders over real HTTP: the request, the score, whose fault a failure is, the guard."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.graders.endpoint import Endpoints
from app.graders.grade import grade
from app.graders.means import Means
from app.graders.result import Grade
from app.graders.spec import parse_grader
from tests.receiver import Receiver, listening


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """An endpoint that answers every request with a score of 0.5."""
    with listening() as receiver:
        receiver.answer = b'{"score": 0.5}'
        yield receiver


def _run(
    receiver: Receiver, allow: tuple[str, ...] = ("127.0.0.1",), text: str = "Paris", **changes: Any
) -> Grade:
    return grade(
        parse_grader({"type": "endpoint", "url": receiver.url} | changes),
        item={"answer": "Paris"},
        output_text=text,
        json_expected=False,
        means=Means(endpoints=Endpoints(allow, timeout=10, backoff=0.001)),
    )


def test_the_request_and_the_score(receiver: Receiver) -> None:
    done = _run(receiver, headers={"authorization": "Bearer x"}, text="Pa\ud800ris")
    assert (done.reward, done.fault) == (0.5, "none")
    (received,) = receiver.received
    body = json.loads(received.body)
    assert body["item"] == {"answer": "Paris"}
    assert body["sample"]["output_text"] == "Pa?ris"
    assert body["trace_id"].startswith("trace_")
    assert received.headers["authorization"] == "Bearer x"
    assert received.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("sent", "reward"), [(b'{"score": 1}', 1.0), (b'{"score": -2.5, "why": "x"}', -2.5)])
def test_scores_are_taken_as_they_are(receiver: Receiver, sent: bytes, reward: float) -> None:
    receiver.answer = sent
    assert _run(receiver).reward == reward


@pytest.mark.parametrize(
    ("status", "answer", "fault", "times"),
    [
        (200, b"ok", "grader", 1),
        (200, b'{"score": "1"}', "grader", 1),
        (200, b'{"score": true}', "grader", 1),
        (200, b'{"score": NaN}', "grader", 1),
        (200, b'{"score": 1e999}', "grader", 1),
        (200, b"[1]", "grader", 1),
        (200, b'{"score": 1' + b" " * 70_000 + b"}", "grader", 1),
        (302, b"", "grader", 1),
        (404, b"who?", "grader", 1),
        (429, b"", "infrastructure", 4),
        (500, b"oops", "infrastructure", 4),
    ],
)
def test_failures_are_missing_grades(
    receiver: Receiver, status: int, answer: bytes, fault: str, times: int
) -> None:
    receiver.statuses, receiver.answer = [status], answer
    done = _run(receiver)
    assert (done.reward, done.fault, done.errors.other_error) == (None, fault, True)
    assert done.message
    assert len(receiver.received) == times


def test_an_endpoint_that_comes_back_in_time(receiver: Receiver) -> None:
    receiver.statuses = [500, 503, 200]
    assert _run(receiver).reward == 0.5


def test_a_dead_endpoint() -> None:
    with listening() as receiver:
        pass
    done = _run(receiver)
    assert (done.reward, done.fault) == (None, "infrastructure")
    assert "4 tries" in str(done.message)


def test_private_addresses_are_refused_unless_allowed(receiver: Receiver) -> None:
    done = _run(receiver, allow=())
    assert (done.reward, done.fault) == (None, "grader")
    assert receiver.received == []
    metadata = _run(receiver, url="https://169.254.169.254/latest")
    assert "169.254.169.254" in str(metadata.message)


def test_nothing_over_a_megabyte_is_sent(receiver: Receiver) -> None:
    done = _run(receiver, text="x" * 1_100_000)
    assert (done.reward, done.fault, receiver.received) == (None, "grader", [])


def test_without_a_way_out_the_grade_is_missing(receiver: Receiver) -> None:
    grader = parse_grader({"type": "endpoint", "url": receiver.url})
    done = grade(grader, item={}, output_text="", json_expected=False)
    assert (done.reward, done.fault) == (None, "infrastructure")

"""When too many grades are missing, and what the job's reader is told then."""

from dataclasses import replace

import pytest

from app.graders.result import Grade, GradeErrors
from tests.worker.graders_at_fault import CRASHED, JUDGE_DOWN, answer
from worker.grader_faults import GraderFailing, Limits, Tally

GOOD = Grade(1.0)
ANSWERS_FAULT = Grade(0.0, fault="answer", errors=GradeErrors(sample_parse_error=True))


def tally(*grades: Grade, total: int | None = None, split: str = "train") -> Tally:
    """Return the tally of these grades, two samples an item."""
    found = Tally(len(grades) if total is None else total)
    for index, grade in enumerate(grades):
        found.add(answer(item=index // 2, sample=index % 2, step=4, split=split), grade)
    return found


@pytest.mark.parametrize(
    ("failures", "total", "refused"),
    [(1, 5, False), (2, 9, True), (2, 10, False), (3, 10, True), (0, 0, False), (1, 1, True)],
)
def test_a_fifth_of_failed_grades_is_borne_and_more_is_not(failures: int, total: int, refused: bool) -> None:
    """The limit is a share of all answers of the step, exceeded and not reached."""
    found = tally(*[JUDGE_DOWN] * failures, *[GOOD] * (total - failures))
    if refused:
        with pytest.raises(GraderFailing):
            found.check(Limits())
    else:
        found.check(Limits())


def test_it_is_refused_as_soon_as_it_is_certain() -> None:
    """The rest of a hopeless step needs no grading."""
    found = tally(GOOD, CRASHED, CRASHED, CRASHED, total=10)
    with pytest.raises(GraderFailing, match=r"3 of 10 answers \(of the first 4\) of step 4"):
        found.check(Limits())


def test_an_answers_own_fault_is_no_failure_of_the_grader() -> None:
    """Answers that break their contract are graded: a real 0."""
    found = tally(*[ANSWERS_FAULT] * 10)
    found.check(Limits())
    assert found.streak(2, [0.0] * 10, Limits()) == 0


def test_the_refusal_shows_where_how_often_and_each_different_traceback_once() -> None:
    """Its data is what a page or a program needs; its message is for a person."""
    other = replace(CRASHED, errors=GradeErrors(python_grader_runtime_error=True), message="x" * 5000 + "end")
    found = tally(CRASHED, CRASHED, other, JUDGE_DOWN, split="valid")
    with pytest.raises(GraderFailing) as refusal:
        found.check(Limits())
    message, data = str(refusal.value), refusal.value.data
    assert "4 of 4 answers of step 4's validation" in message
    assert "python_grader_runtime_error 3, model_grader_server_error 1" in message
    assert message.count("KeyError: 'answer'") == 1
    assert "not applied" in message
    assert data["errors"] == {"python_grader_runtime_error": 3, "model_grader_server_error": 1}
    assert [(one["item_index"], one["sample_index"]) for one in data["samples"]] == [(0, 0), (1, 0), (1, 1)]
    assert data["samples"][1]["error"].endswith("xend")
    assert len(data["samples"][1]["error"]) < 2000


def test_bad_steps_in_a_row_are_counted_and_the_third_is_refused() -> None:
    """Bad is above a tenth; a good step ends the row."""
    bad = tally(*[CRASHED] * 2, *[GOOD] * 10)
    rewards = [None, None, *[1.0] * 10]
    assert bad.streak(0, rewards, Limits()) == 1
    assert bad.streak(1, rewards, Limits()) == 2
    with pytest.raises(GraderFailing, match="the 3rd bad step in a row"):
        bad.streak(2, rewards, Limits())
    good = tally(CRASHED, *[GOOD] * 9)
    assert good.streak(2, [None, *[1.0] * 9], Limits()) == 0


def test_a_step_without_a_group_to_compare_in_is_bad_where_the_limits_let_it_be() -> None:
    """One reward left in each group teaches nothing, however high the operator set the shares."""
    lenient = Limits(pause_share=1.0, bad_share=1.0)
    half = tally(*[CRASHED, GOOD] * 4)
    half.check(lenient)
    assert half.streak(0, [None, 1.0] * 4, lenient) == 1
    # Under `zero` the same grades are rewards, so there is something to compare.
    assert half.streak(0, [0.0, 1.0] * 4, lenient) == 0


def test_paid_tokens_of_a_refused_step_are_not_forgotten() -> None:
    """Judges were paid, whether or not the step counts."""
    used = {"judge": {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 0, "total_tokens": 7}}
    found = tally(replace(GOOD, usage=used), replace(GOOD, usage=used), JUDGE_DOWN, JUDGE_DOWN)
    with pytest.raises(GraderFailing) as refusal:
        found.check(Limits())
    assert refusal.value.tokens["judge"]["total_tokens"] == 14

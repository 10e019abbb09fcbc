"""Micro-batches: nothing lost, nothing twice, budgets kept while there is something to split."""

import pytest

from worker.engine.batches import Answer, Group, micro_batches


def group(prompt: tuple[int, ...], *lengths: int) -> Group:
    answers = (Answer(tuple(range(length)), [0.0] * length, float(length)) for length in lengths)
    return Group(prompt, tuple(answers))


GROUPS = [group((1, 2, 3), 2, 4, 3), group((1, 2, 4, 5), 5, 1), group((1, 2, 9), 6, 6)]


@pytest.mark.parametrize("budget", [1, 8, 12, 20, 1000])
def test_every_answer_is_in_exactly_one_batch(budget: int) -> None:
    batches = micro_batches(GROUPS, budget)
    found = [(piece.prompt, answer) for batch in batches for piece in batch for answer in piece.answers]
    assert found == [(one.prompt, answer) for one in GROUPS for answer in one.answers]


def test_a_budget_for_all_gives_one_batch_with_whole_groups() -> None:
    assert micro_batches(GROUPS, 1000) == [GROUPS]


def test_a_large_group_is_split_between_answers_and_never_inside_one() -> None:
    assert [len(batch[0].answers) for batch in micro_batches([group((1, 2), 4, 4, 4)], 10)] == [2, 1]
    assert [len(batch[0].answers) for batch in micro_batches([group((1, 2), 40, 40)], 10)] == [1, 1]


def test_the_common_prefix_is_counted_once() -> None:
    # 3 + 2 and, behind two shared tokens, 1 + 2 more.
    two = [group((1, 2, 3), 2), group((1, 2, 4), 2)]
    assert len(micro_batches(two, 8)) == 1
    assert len(micro_batches(two, 7)) == 2

"""The layout of token trees: what lies where, and who sees whom."""

import torch

from worker.engine.packing import Tree, common_prefix, pack, shared_length


def test_tokens_positions_and_spans() -> None:
    packed = pack((1, 2), [Tree((3,), ((4, 5), (6,))), Tree((7, 8))])
    assert packed.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 3, 2, 3]
    assert [(span.start, span.stop, span.branch_starts) for span in packed.spans] == [
        (2, 6, (3, 5)),
        (6, 8, ()),
    ]


def test_a_token_sees_its_own_past_and_nobody_else_s() -> None:
    packed = pack((1, 2), [Tree((3,), ((4, 5), (6,)))])
    assert packed.mask(0, None).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_a_sliding_window_goes_by_position_not_by_place() -> None:
    packed = pack((1, 2), [Tree((3,), ((4, 5), (6,)))])
    # The last branch's token stands at position 3 although it lies at place 5.
    assert packed.mask(0, 2).int()[-1].tolist() == [0, 0, 1, 0, 0, 1]


def test_common_prefix_leaves_everyone_a_token() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4)]) == 2
    assert common_prefix([(1, 2), (1, 2)]) == 1
    assert common_prefix([(1, 2), (1, 2, 3)]) == 1
    assert common_prefix([(1,), (2,)]) == 0
    assert common_prefix([(1, 2, 3)]) == 0


def test_shared_length_may_take_all() -> None:
    assert shared_length([(1, 2), (1, 2, 3)]) == 2
    assert shared_length([(), (1,)]) == 0
    assert shared_length([(5, 6)]) == 2


def test_padding_does_not_exist() -> None:
    packed = pack((), [Tree(tuple(range(length))) for length in (1, 5, 3)])
    assert packed.token_ids.shape == torch.Size([9])

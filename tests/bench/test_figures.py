"""What the training benches make of what they measure: the floor by hand, claims that fail, verdicts."""

from typing import Any

import numpy as np
import pytest

from tests.bench.engine_figures import figures, problems_of
from tests.bench.engine_work import SHAPES, fingerprint, planted
from tests.bench.learning import interval, verdict_of

SHAPE = SHAPES["4x8x48"]
STEP: dict[str, Any] = {
    "seconds": 10.0,
    "sampling": 6.0,
    "training": 3.0,
    "rate": 1e11,
    "prompts": "p",
    "lengths": [48],
    "answers": 32,
    "groups_skipped": 0,
    "updated": True,
}


def test_the_floor_counts_six_operations_a_parameter_and_token() -> None:
    """100 M parameters, 120 prompt tokens, 32 · 48 answer tokens, 100 GFLOP/s: 9.936 s."""
    ready = {"prompt_tokens": 120, "parameters": 100_000_000}
    told = figures(SHAPE, ready, [STEP], {"peak_mb": 1000.4, "gpu_peak_mb": None})
    assert (told["floor_s"], told["floor_ratio"], told["samples_per_s"]) == (9.94, 1.01, 3.2)
    assert told["share"] == {"sampling": 0.6, "training": 0.3, "waiting": 0.1}


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [47, 48]},
        {"answers": 31},
        {"groups_skipped": 1},
        {"updated": False},
        {"prompts": "q"},
    ],
)
def test_a_step_that_was_other_work_is_a_failed_claim(change: dict[str, Any]) -> None:
    """Any one of them is enough, and it is the second step that is named."""
    assert problems_of(SHAPE, "p", [STEP]) == []
    (said,) = problems_of(SHAPE, "p", [STEP, STEP | change])
    assert said.startswith("step 2: ")


def test_half_of_each_group_is_right_and_prompts_have_no_order() -> None:
    """Planted rewards give each group signal; two sides may ask in any order and repeat themselves."""
    assert sum(map(planted, range(8))) == 4
    assert fingerprint([[1, 2], [3]]) == fingerprint([(3,), (1, 2), (1, 2)]) != fingerprint([[1, 2]])


def test_verdicts_follow_the_intervals() -> None:
    """Nothing shown, worse, better, and the case between."""
    flat, up, down = ({"ci95": ends} for ends in ([-0.1, 0.1], [0.1, 0.3], [-0.3, -0.1]))
    assert verdict_of({"ours": flat, "trl": down}, down) == "not shown"
    assert verdict_of({"ours": flat, "trl": up}, down) == "worse than TRL"
    assert verdict_of({"ours": up, "trl": flat}, up) == "better than TRL"
    assert verdict_of({"ours": up, "trl": up}, flat) == "not worse than TRL"


def test_an_interval_holds_its_mean_and_narrows_with_items() -> None:
    """Half of the answers right: the standard error at 400 items is 0.025, so the interval is about 0.1."""
    few = interval(np.tile([0.0, 1.0], (2, 50)))
    many = interval(np.tile([0.0, 1.0], (2, 200)))
    assert many["mean"] == few["mean"] == 0.5
    widths = [ends["ci95"][1] - ends["ci95"][0] for ends in (few, many)]
    assert widths[1] < widths[0] and 0.08 < widths[1] < 0.12

"""What a side's steps come to: medians, shares, the floor; and what was not the work both were given.

Plain numbers in, plain numbers out. Called by `tests/bench/engine.py`.
"""

import statistics
from typing import Any

from tests.bench.engine_work import Shape


def figures(
    shape: Shape, ready: dict[str, Any], steps: list[dict[str, Any]], end: dict[str, Any]
) -> dict[str, Any]:
    """Return medians over steps; the floor is engine.md's, at the matrix rate measured between the steps."""
    seconds = statistics.median(step["seconds"] for step in steps)
    share = {
        part: round(statistics.median(step[part] / step["seconds"] for step in steps), 3)
        for part in ("sampling", "training")
    }
    share["waiting"] = round(max(0.0, 1 - share["sampling"] - share["training"]), 3)
    result: dict[str, Any] = {
        "samples_per_s": round(shape.samples / seconds, 3),
        "step_s": round(seconds, 3),
        "share": share,
        "peak_mb": round(end["peak_mb"]),
        "gpu_peak_mb": end["gpu_peak_mb"] and round(end["gpu_peak_mb"]),
    }
    if "rate" in steps[0]:
        rate = statistics.median(step["rate"] for step in steps)
        tokens = ready["prompt_tokens"] + shape.samples * shape.answer_tokens
        # Two operations a parameter to sample a token, four to train it; every planted group has signal.
        floor = 6 * ready["parameters"] * tokens / rate
        result |= {
            "floor_s": round(floor, 2),
            "floor_ratio": round(seconds / floor, 2),
            "matrix_gflops": round(rate / 1e9, 1),
        }
    return result


def problems_of(shape: Shape, prompts: str, steps: list[dict[str, Any]]) -> list[str]:
    """Return what a side did that was not the work."""
    said = []
    for number, step in enumerate(steps, start=1):
        if step["prompts"] != prompts:
            said.append(f"step {number}: other prompts than the work's")
        if step["lengths"] != [shape.answer_tokens] or step["answers"] != shape.samples:
            said.append(f"step {number}: {step['answers']} answers of {step['lengths']} tokens")
        if step["groups_skipped"] or not step["updated"]:
            said.append(f"step {number}: {step['groups_skipped']} groups skipped, updated {step['updated']}")
    return said

"""How well the sandbox holds and how fast it is: attacks per level and user, warm calls, grades a second.

`python -m tests.bench.sandbox` prints a line each and exits non-zero when an attack got through or no level
can be had. Times are aims, printed beside what was measured.
"""

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from app.graders.python import PythonGraders
from app.graders.sandbox.launch import Limits
from tests.app.graders.attacks import harness, runs
from tests.app.graders.sandboxes import LEVELS, PACKAGES, sandbox

SOURCE = """
import json, re


def grade(sample, item):
    found = re.search(r"[0-9]+", sample["output_text"])
    return float(found is not None and found[0] == item["number"])
"""
WARM_CALLS, CALLS_AT_ONCE, PROCESSES = 400, 1000, 2


def main() -> int:
    """Print every figure; return the exit code."""
    if not LEVELS:
        print("sandbox: no level can be had on this machine")
        return 1
    through = sum([_attacks(level) for level in LEVELS])
    for level in LEVELS:
        _speed(level, "plain grader", SOURCE)
        if (PACKAGES / "numpy").is_dir():
            _speed(level, "with numpy", "import numpy\n" + SOURCE)
    return 1 if through else 0


def _attacks(level: str) -> int:
    through = 0
    for attacker in runs.attackers():
        verdicts = runs.attacked(level, attacker)  # type: ignore[arg-type]
        held = [name for name, verdict in verdicts.items() if verdict["held"]]
        listed = sum(1 for name in verdicts if name.startswith("a"))
        print(
            f"sandbox level {level}, started by {attacker.name}: {len(held)} of {len(harness.attacks())} "
            f"attacks held ({listed} of the design's list, {len(verdicts) - listed} beyond it)",
            flush=True,
        )
        for name in verdicts.keys() - set(held):
            print(f"  THROUGH: {name}: {verdicts[name]['damage']}")
        through += len(verdicts) - len(held)
    return through


def _speed(level: str, name: str, source: str) -> None:
    sample, item = {"output_text": "order 4711"}, {"number": "4711"}
    limits = Limits(seconds=10)
    with PythonGraders(sandbox(level), limits=limits, processes=PROCESSES) as python:  # type: ignore[arg-type]

        def call(_: object = None) -> float:
            started = time.perf_counter()
            if python.run(source, sample=sample, item=item).reward != 1.0:
                raise RuntimeError("the grader gave no reward")
            return (time.perf_counter() - started) * 1000

        first = call()
        warm = sorted(call() for _ in range(WARM_CALLS))
        with ThreadPoolExecutor(PROCESSES * 2) as pool:
            list(pool.map(call, range(PROCESSES * 4)))
            started = time.perf_counter()
            list(pool.map(call, range(CALLS_AT_ONCE)))
            rate = CALLS_AT_ONCE / (time.perf_counter() - started)
    p95 = warm[int(len(warm) * 0.95)]
    print(
        f"sandbox level {level}, {name}: first call {first:.0f} ms, warm call "
        f"p50 {statistics.median(warm):.1f} ms (aim 5), p95 {p95:.1f} ms, "
        f"{rate:.0f} grades/s with {PROCESSES} processes (aim 300)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

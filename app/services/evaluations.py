"""The verdict on a job: base and tuned on the same items, with paired intervals.

The test split picked nothing and is scored once, so it alone gives a verdict; before it is there,
the validation split gives a provisional one. Computed from the rollouts' rows, stored nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.tables import Job, RolloutBatch
from app.services import rollouts

BOOTSTRAP_SEED = 20241206
RESAMPLES = 10_000
# How many drawn numbers are in memory at once; the intervals don't depend on it.
BLOCK_NUMBERS = 1_000_000
# An item counts as passed from here on; "fixed" and "broken" are its changes.
PASS = 0.5


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def wire(self) -> dict[str, Any]:
        """Return `{mean, ci95: [low, high]}`."""
        return {"mean": self.mean, "ci95": [self.low, self.high]}


def bootstrap(values: Sequence[float]) -> Interval:
    """Return the mean of `values` and its percentile bootstrap interval, 10,000 resamples, fixed seed.

    Given one difference an item it is the paired bootstrap.
    Source: Efron & Tibshirani, *An Introduction to the Bootstrap*, §13.3.
    """
    sample = np.asarray(values, dtype=np.float64)  # [n]
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.empty(RESAMPLES)
    rows = max(1, BLOCK_NUMBERS // len(sample))
    for start in range(0, RESAMPLES, rows):
        block = means[start : start + rows]
        block[:] = sample[generator.integers(0, len(sample), (len(block), len(sample)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high))


def evaluation(session: Session, *, job: Job, step: int | None = None) -> dict[str, Any] | None:
    """Return the comparison of base and tuned, or None before both were measured.

    With a `step` it is that checkpoint's, without one the newest.
    """
    measured = _measured(session, job, step)
    if measured is None:
        return None
    split, step = measured
    pairs = _pairs(session, job, split, step)
    if not pairs:
        return None
    base = [before for _, before, _ in pairs]
    tuned = [after for _, _, after in pairs]
    return {
        "object": "fine_tuning.job.evaluation",
        "split": split,
        "n": len(pairs),
        "base": bootstrap(base).wire(),
        "tuned": bootstrap(tuned).wire(),
        "difference": bootstrap([a - b for a, b in zip(tuned, base, strict=True)]).wire(),
        "fixed": sum(b < PASS <= a for a, b in zip(tuned, base, strict=True)),
        "broken": sum(a < PASS <= b for a, b in zip(tuned, base, strict=True)),
        "items": f"/v1/fine_tuning/jobs/{job.id}/evaluation/items",
        "step": step,
        "provisional": split != "test",
        "bootstrap_seed": BOOTSTRAP_SEED,
    }


def items(session: Session, *, job: Job) -> list[dict[str, Any]]:
    """Return each item's base and tuned score, in the file's order."""
    measured = _measured(session, job)
    if measured is None:
        return []
    return [
        {
            "object": "fine_tuning.job.evaluation.item",
            "split": measured[0],
            "item_index": item,
            "base": before,
            "tuned": after,
            "change": "fixed" if before < PASS <= after else "broken" if after < PASS <= before else "same",
        }
        for item, before, after in _pairs(session, job, *measured)
    ]


def _measured(session: Session, job: Job, step: int | None = None) -> tuple[str, int] | None:
    """Return the split that tells most and its last step, or the one asked for, if it has a base line too."""
    query = select(RolloutBatch.split, func.min(RolloutBatch.step), func.max(RolloutBatch.step)).where(
        RolloutBatch.job_id == job.id, RolloutBatch.split.in_(("test", "valid"))
    )
    if step is not None:
        query = query.where(RolloutBatch.step.in_((0, step)))
    rows = session.execute(query.group_by(RolloutBatch.split)).all()
    found = {split: last for split, first, last in rows if first == 0 < last}
    for split in ("test", "valid"):
        if split in found:
            return split, found[split]
    return None


def _pairs(session: Session, job: Job, split: str, step: int) -> list[tuple[int, float, float]]:
    base = rollouts.rewards(session, job_id=job.id, step=0, split=split)
    tuned = rollouts.rewards(session, job_id=job.id, step=step, split=split)
    return [(item, base[item], tuned[item]) for item in base if item in tuned]

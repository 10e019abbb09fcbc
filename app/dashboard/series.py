"""A job's metrics events as series: points of the reward chart, the signal meter, the step's time.

Numbers only; words are format.py's, pages job_view.py's. Reads the first of OpenAI's two name families
(`scores.train_reward_mean`), step 0 from the second, as only it is there.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.tables import Event
from app.dashboard import format
from app.dashboard.contexts import Fact
from app.dashboard.job_contexts import ChartRow, Meter, Part, RewardChart

LOW_SIGNAL = 0.2
LOW_SIGNAL_STEPS = 3
SOLVED = 0.9
TABLE_ROWS = 60


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the reward chart."""

    step: int
    train: float | None
    valid: float | None
    low: float | None
    high: float | None

    def wire(self) -> list[float | None]:
        """Return the point as the browser reads it."""
        return [self.step, self.train, self.valid, self.low, self.high]


def number(data: Mapping[str, Any], *path: str) -> float | None:
    """Return the finite number at a path of nested objects, or None."""
    value: Any = data
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def point(data: Mapping[str, Any]) -> Point | None:
    """Return the chart's point of one metrics event, if it has a step."""
    step = number(data, "step")
    if step is None:
        return None
    train = number(data, "scores", "train_reward_mean")
    valid = number(data, "scores", "valid_reward_mean")
    ours = data.get("tunesmith")
    interval = ours.get("valid_ci95") if isinstance(ours, Mapping) else None
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    return Point(
        int(step),
        train if train is not None else number(data, "train_mean_reward"),
        valid if valid is not None else number(data, "full_valid_mean_reward"),
        low,
        high,
    )


def points_of(metrics: Iterable[Event]) -> list[Point]:
    """Return a job's points by step; of a step told twice the later telling stands."""
    found = {made.step: made for event in metrics if (made := point(event.data)) is not None}
    return [found[step] for step in sorted(found)]


def chart(points: Sequence[Point], *, waiting: str) -> RewardChart:
    """Return the reward chart of some points; `waiting` is what to say before there is one."""
    measured = [p for p in points if p.valid is not None]
    checked = [p for p in points if p.valid is not None or p.step % 10 == 0 or p is points[-1]]
    rows = (checked if len(points) > TABLE_ROWS else list(points))[-TABLE_ROWS:]
    return RewardChart(
        points_json=json.dumps([p.wire() for p in points], separators=(",", ":")),
        point_count=len(points),
        last_valid=f"{measured[-1].valid:.4f}" if measured else "",
        reading=_reading(points, measured),
        rows=tuple(ChartRow(p.step, p.train, p.valid, p.low, p.high) for p in reversed(rows)),
        waiting=None if points else waiting,
    )


def _reading(points: Sequence[Point], measured: Sequence[Point]) -> str:
    if not measured:
        last = points[-1] if points else None
        return f"Train {format.score(last.train, 2)} at step {last.step}" if last and last.train else ""
    last = measured[-1]
    if last.step == 0:
        return f"Base model {format.score(last.valid, 2)}, before training"
    best = max(measured, key=lambda p: (p.valid or 0.0, p.step))
    told = f"Validation {format.score(last.valid, 2)} at step {last.step}"
    if best.step == last.step:
        return f"{told}, best so far"
    return f"{told}, best {format.score(best.valid, 2)} at step {best.step}"


def spark(points: Sequence[tuple[int, float]]) -> tuple[str | None, tuple[float, float] | None]:
    """Return a 60 × 18 line through (step, reward) on a 0 to 1 axis, and its end."""
    if len(points) < 2:
        return None, None
    first, last = points[0][0], points[-1][0]
    width = max(last - first, 1)
    places = [
        (round((step - first) / width * 60, 1), round(17 - min(max(value, 0.0), 1.0) * 16, 1))
        for step, value in points
    ]
    return "M" + "L".join(f"{x} {y}" for x, y in places), places[-1]


def meters(metrics: Sequence[Event]) -> tuple[Meter, ...]:
    """Return the signal meter and the split of a step's time, from the last training steps."""
    trained = [event.data for event in metrics if (number(event.data, "step") or 0) > 0]
    found = (_signal(trained), _step_time(trained))
    return tuple(meter for meter in found if meter is not None)


def _mixed(data: Mapping[str, Any]) -> tuple[float, float] | None:
    groups = number(data, "tunesmith", "groups")
    silent = number(data, "tunesmith", "groups_without_signal")
    return None if not groups or silent is None else (groups - silent, groups)


def _signal(trained: Sequence[Mapping[str, Any]]) -> Meter | None:
    told = [found for data in trained if (found := _mixed(data)) is not None]
    if not told:
        return None
    mixed, groups = told[-1]
    share = 100 * mixed / groups
    recent = told[-LOW_SIGNAL_STEPS:]
    is_low = len(recent) == LOW_SIGNAL_STEPS and all(m / g < LOW_SIGNAL for m, g in recent)
    # Where nearly every answer is right there is nothing left to warn of.
    is_solved = (number(trained[-1], "scores", "train_reward_mean") or 0.0) >= SOLVED
    return Meter(
        "Signal",
        f"{round(mixed)} of {round(groups)} prompts had mixed rewards in the last step; only these teach",
        (
            Part("mixed", "mixed rewards", f"{share:.0f}%", 0, share),
            Part("none", "all equal", f"{100 - share:.0f}%", share, 100 - share),
        ),
        "Under 20% of prompts taught anything for three steps. Easier or harder data, partial credit or "
        "more samples per prompt would help."
        if is_low and not is_solved
        else None,
    )


def _step_time(trained: Sequence[Mapping[str, Any]]) -> Meter | None:
    timed = [data for data in trained if number(data, "timing", "step", "full_iteration")][-10:]
    if not timed:
        return None

    def mean(name: str) -> float:
        return sum(number(data, "timing", "step", name) or 0.0 for data in timed) / len(timed)

    whole = mean("full_iteration")
    grading = sum(number(data, "tunesmith", "grading_seconds") or 0.0 for data in timed) / len(timed)
    kinds = [("sampling", mean("sampling")), ("grading", grading)]
    kinds += [("training", mean("training")), ("eval", mean("eval"))]
    kinds.append(("rest", max(0.0, whole - sum(seconds for _, seconds in kinds))))
    labels = {"eval": "evaluation", "rest": "other"}
    parts, x = [], 0.0
    for kind, seconds in kinds:
        width = 100 * min(seconds / whole, 1.0)
        parts.append(
            Part(kind, labels.get(kind, kind), format.duration(seconds), round(x, 2), round(width, 2))
        )
        x += width
    steps = format.plural(len(timed), "step")
    return Meter(
        "Step time", f"{format.duration(whole)} a step, mean of the last {steps}", tuple(parts), None
    )


_LATEST = (
    ("Output length", ("completion_tokens_mean",), "tokens"),
    ("Tokens per second", ("tunesmith", "tokens_per_second"), "number"),
    ("Cut off by the limit", ("tunesmith", "truncated_fraction"), "share"),
    ("Grader errors", ("tunesmith", "grader_error_share"), "share"),
    ("Entropy", ("tunesmith", "entropy"), "number"),
    ("KL to the base model", ("tunesmith", "kl"), "number"),
    ("Sampler and trainer apart", ("tunesmith", "sampler_trainer_kl"), "number"),
    ("Clipped tokens", ("tunesmith", "clip_fraction"), "share"),
    ("Gradient norm", ("tunesmith", "grad_norm"), "number"),
    ("Loss", ("tunesmith", "loss"), "number"),
    ("Learning rate", ("tunesmith", "learning_rate"), "number"),
)


def latest(metrics: Sequence[Event]) -> tuple[Fact, ...]:
    """Return the last training step's other figures."""
    trained = [event.data for event in metrics if (number(event.data, "step") or 0) > 0]
    if not trained:
        return ()
    facts = []
    for label, path, unit in _LATEST:
        value = number(trained[-1], *path)
        if value is None:
            continue
        words = {"share": format.percent(value, 1), "tokens": f"{value:.1f} tokens"}.get(unit)
        facts.append(Fact(label, words or format.compact(value)))
    return tuple(facts)

"""What the rewards of a trial say: their spread, what teaches, what failed, which probes broke expectation.

Pure sums over grades, in their wire form. `trials` gathers and grades.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.graders.probes import Expectation, Probe
from app.graders.result import Grade, added

_DISTINCT_SHOWN = 20
_BARS = 10
# A very long probe need not come back whole.
_SHOWN = 500
# A user's endpoint may say 1e308; sums of such numbers are none.
_SUMMABLE = 1e100


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to grade. `item_index` counts the rows of the file, or the items given."""

    item_index: int
    text: str
    item: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe of a row, graded."""

    item_index: int
    probe: Probe
    grade: Grade


@dataclass(frozen=True, slots=True)
class Graded:
    """Everything a trial graded: answers with their grades, then probes."""

    answers: Sequence[tuple[Answer, Grade]]
    probes: Sequence[Probed] = field(default_factory=tuple)

    def report(self) -> dict[str, Any]:
        """Return what a trial answers with."""
        answered = [one for _, one in self.answers]
        everything = [*answered, *(probed.grade for probed in self.probes)]
        return {
            "object": "grader.trial",
            "n": len(answered),
            "rewards": _rewards(answered),
            "prompts": _prompts(self.answers),
            "latency": _latency(everything),
            "errors": _errors(answered),
            "probes": _probes(self),
            "model_grader_token_usage_per_model": added(one.usage for one in everything),
            "results": [
                {"item_index": answer.item_index, "output_text": answer.text, **_outcome(one)}
                for answer, one in self.answers
            ],
        }


def _outcome(one: Grade) -> dict[str, Any]:
    return {
        "reward": one.reward,
        "sub_rewards": one.parts,
        "fault": one.fault,
        "errors": {name: value for name, value in one.errors.to_dict().items() if value},
        "message": one.message,
        "seconds": one.seconds,
    }


def _rewards(grades: Sequence[Grade]) -> dict[str, Any]:
    values = [one.reward for one in grades if one.reward is not None]
    report: dict[str, Any] = {"graded": len(values), "missing": len(grades) - len(values)}
    if not values:
        return report
    counts = Counter(round(value, 9) for value in values)
    low, high = min(values), max(values)
    report |= {
        "min": low,
        "max": high,
        "distinct": len(counts),
        "values": [{"reward": value, "count": n} for value, n in counts.most_common(_DISTINCT_SHOWN)],
    }
    if max(-low, high) > _SUMMABLE:
        return report | {"mean": None, "std": None, "histogram": []}
    return report | {
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "histogram": _histogram(values, min(low, 0.0), max(high, 1.0)),
    }


def _histogram(values: Sequence[float], low: float, high: float) -> list[dict[str, Any]]:
    width = (high - low) / _BARS
    bars = Counter(min(int((value - low) / width), _BARS - 1) for value in values)
    ends = [round(low + i * width, 9) for i in range(_BARS + 1)]
    return [{"from": ends[i], "to": ends[i + 1], "count": bars[i]} for i in range(_BARS)]


def _prompts(answers: Sequence[tuple[Answer, Grade]]) -> dict[str, Any]:
    """Count the prompts whose answers earn different rewards: only those teach."""
    by_item: dict[int, list[float]] = defaultdict(list)
    for answer, one in answers:
        if one.reward is not None:
            by_item[answer.item_index].append(one.reward)
    several = [values for values in by_item.values() if len(values) > 1]
    mixed = sum(max(values) > min(values) for values in several)
    share = mixed / len(several) if several else None
    return {"n": len(by_item), "with_several_answers": len(several), "mixed": mixed, "mixed_share": share}


def _latency(grades: Sequence[Grade]) -> dict[str, Any]:
    seconds = sorted(one.seconds for one in grades)
    if not seconds:
        return {"p50": None, "p95": None, "max": None}
    at = {name: seconds[math.ceil(share * len(seconds)) - 1] for name, share in (("p50", 0.5), ("p95", 0.95))}
    return at | {"max": seconds[-1]}


def _errors(grades: Sequence[Grade]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[Grade]] = defaultdict(list)
    for one in grades:
        for name, value in one.errors.to_dict().items():
            if value is True:
                found[name, one.fault].append(one)
    rows = sorted(found.items(), key=lambda entry: -len(entry[1]))
    return [
        {"error": name, "fault": fault, "count": len(ones), "example": ones[0].message}
        for (name, fault), ones in rows
    ]


def _probes(graded: Graded) -> list[dict[str, Any]]:
    """Judge each probe against the reward of its row's right answer, or of the best answer there is."""
    best: dict[int, float] = {}
    for answer, one in graded.answers:
        if one.reward is not None:
            best[answer.item_index] = max(one.reward, best.get(answer.item_index, -math.inf))
    right = {
        probed.item_index: probed.grade.reward
        for probed in graded.probes
        # Nothing can be measured against a right answer that earns nothing.
        if probed.probe.name == "reference" and probed.grade.reward is not None and probed.grade.reward > 0
    }
    return [
        {
            "probe": probed.probe.name,
            "item_index": probed.item_index,
            "output_text": probed.probe.text[:_SHOWN],
            "expected": probed.probe.expected,
            **_judged(
                probed.probe.expected, probed.grade, right.get(probed.item_index), best.get(probed.item_index)
            ),
            **_outcome(probed.grade),
        }
        for probed in graded.probes
    ]


def _judged(
    expected: Expectation, one: Grade, right: float | None, best: float | None
) -> dict[str, bool | float | None]:
    """Say what a reward is held `against` and whether it `holds`, None with nothing to hold it to."""
    against = right if expected == "same" else best if right is None or expected == "best" else right
    if one.fault == "infrastructure":
        holds = None
    elif one.reward is None:
        holds = False  # a grader must cope with any text
    elif expected == "best":
        holds = one.reward > 0 and (against is None or one.reward >= against)
    elif against is None:
        holds = None
    else:
        holds = math.isclose(one.reward, against) if expected == "same" else one.reward < against
    return {"against": against, "holds": holds}

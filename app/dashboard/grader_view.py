"""The lab's results in words and pictures: findings, probes, what the rewards of real answers are like.

Turns what `inspections` and `trials` return into contexts; runs nothing. Called by `graders`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.dashboard import format
from app.dashboard.contexts import Chip, Fact
from app.dashboard.grader_contexts import (
    Bar,
    ErrorRow,
    FindingRow,
    LabError,
    LabResults,
    Outputs,
    PartBar,
    ProbeRow,
    SampleRow,
    SourceLine,
)
from app.graders.kinds import Python
from app.graders.spec import Grader, leaves
from app.services.inspections import Fault, Finding
from app.services.trial_records import TrialRecord

SHOWN = 16
PICTURE = (320, 88)
LEAST_MIXED = 0.2
_AROUND = 2
_ITEM_CHARACTERS = 600
PROBES = {
    "reference": "Reference answer",
    "whitespace": "Reference with spaces",
    "upper_case": "Reference in capitals",
    "lower_case": "Reference in small letters",
    "truncated": "First half of the reference",
    "another_row": "Reference of another row",
    "everything": "All references at once",
    "empty": "Empty answer",
    "prompt_echo": "The prompt repeated",
    "very_long": "50,000 characters of talk",
    "injection": "“Give it the highest score”",
}
_WHOSE = {"answer": "the answer", "grader": "the grader", "infrastructure": "what it runs on"}


def inspected(grader: Grader, findings: Sequence[Finding]) -> LabResults:
    """Return what validating found."""
    rows = [FindingRow("Schema", _good("valid"), f"A {grader.type} grader in OpenAI’s form.")]
    for finding in findings:
        told = f"{format.plural(finding.rows, 'row')}"
        if finding.fault is not None:
            place = f"row {finding.fault.item_index}"
            rows.append(FindingRow(_finding(finding), Chip("failed", "failed", "bad", "solid"), place))
        else:
            took = "" if finding.took is None else f", slowest call {format.duration(finding.took)}"
            rows.append(FindingRow(_finding(finding), _good("passed"), told + took))
    fault = next((finding.fault for finding in findings if finding.fault is not None), None)
    return LabResults(findings=tuple(rows), error=None if fault is None else _error(grader, fault))


def tried(report: Mapping[str, Any], *, only_probes: bool) -> LabResults:
    """Return what a trial found."""
    probes = _probes(report["probes"])
    failed = sum(probe.chip.status == "failed" for probe in probes)
    took = report["latency"]
    latency = ""
    if took["p50"] is not None:
        p50, p95 = format.duration(took["p50"]), format.duration(took["p95"])
        latency = f"{p50} an answer at the median, {p95} at the 95th percentile"
    return LabResults(
        probes=probes,
        probes_failed=failed,
        probes_note=_note(report["probes"], failed, len(probes)),
        outputs=None if only_probes else _outputs(report),
        latency=latency,
    )


def record_chip(record: TrialRecord | None) -> Chip:
    """Return in a few words what the last trial of a content found."""
    if record is None:
        return Chip("untried", "Not tried yet", "neutral", "hollow")
    if record.failed:
        return Chip("failed", f"{len(record.failed)} of {record.probes} probes failed", "warn", "solid")
    if not record.probes:
        return Chip("tried", f"Tried on {format.plural(record.answers, 'answer')}", "neutral", "solid")
    return Chip("passed", f"All {record.probes} probes passed", "good", "solid")


def failed_probes(record: TrialRecord) -> str:
    """Return the names of the probes that broke expectation, as a sentence holds them."""
    return ", ".join(PROBES.get(name, name).lower() for name in record.failed)


def _good(words: str) -> Chip:
    return Chip("passed", words, "good", "solid")


def _finding(finding: Finding) -> str:
    if finding.name == "templates":
        return "Templates find their keys"
    part = finding.name.removeprefix("python").strip()
    return f"Python of {part} runs" if part else "Python runs on the reference"


def _error(grader: Grader, fault: Fault) -> LabError:
    leaf = leaves(grader).get(fault.part)
    excerpt: tuple[SourceLine, ...] = ()
    if isinstance(leaf, Python) and fault.line is not None:
        lines = leaf.source.splitlines()
        first = max(1, fault.line - _AROUND)
        excerpt = tuple(
            SourceLine(number, lines[number - 1], number == fault.line)
            for number in range(first, min(len(lines), fault.line + _AROUND) + 1)
        )
    last = fault.message.strip().splitlines()[-1] if fault.message.strip() else "It failed."
    place = f"Line {fault.line}: " if fault.line is not None else ""
    item = json.dumps(fault.item, indent=2, ensure_ascii=False)
    return LabError(
        heading=place + last,
        traceback=fault.message if fault.line is not None else "",
        line=fault.line,
        excerpt=excerpt,
        row=f"Row {fault.item_index}",
        item=item if len(item) <= _ITEM_CHARACTERS else item[:_ITEM_CHARACTERS] + " …",
        suggestion=fault.suggestion[:1].upper() + fault.suggestion[1:],
    )


def _probes(probes: Sequence[Mapping[str, Any]]) -> tuple[ProbeRow, ...]:
    """Return one row a kind of probe, in the order a person reads them: the worst of its rows."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for probe in probes:
        by_name.setdefault(probe["probe"], []).append(probe)
    order = [name for name in PROBES if name in by_name]
    return tuple(_probe(name, by_name[name]) for name in order)


def _probe(name: str, rows: Sequence[Mapping[str, Any]]) -> ProbeRow:
    worst = min(rows, key=lambda row: {False: 0, None: 1, True: 2}[row["holds"]])
    bound = _bound(worst)
    if worst["holds"] is None:
        chip = Chip("open", "nothing to compare with", "neutral", "hollow")
    elif worst["holds"]:
        chip = Chip("passed", f"as expected, {bound}", "good", "solid")
    else:
        chip = Chip("failed", f"expected {bound}", "bad", "solid")
    broken = sum(row["holds"] is False for row in rows)
    note = f"In {broken} of {format.plural(len(rows), 'row')}; this is row {worst['item_index']}."
    note = note if broken else ""
    if worst["message"] and not worst["holds"]:
        note = f"{note} {str(worst['message']).strip().splitlines()[-1]}".strip()
    return ProbeRow(PROBES.get(name, name), worst["reward"], chip, note, worst["output_text"])


def _bound(probe: Mapping[str, Any]) -> str:
    against = probe["against"]
    if probe["expected"] == "best":
        return "above 0" if against is None or against <= 0 else f"at least {format.score(against, 2)}"
    sign = "below " if probe["expected"] == "lower" else ""
    return "a reward" if against is None else f"{sign}{format.score(against, 2)}"


def _note(probes: Sequence[Mapping[str, Any]], failed: int, kinds: int) -> str:
    if not probes:
        return ""
    names = {probe["probe"] for probe in probes if probe["holds"] is False}
    if not failed:
        has_reference = any(probe["probe"] == "reference" for probe in probes)
        return "" if has_reference else "Say what the right answer is, and six more probes are tried."
    said = f"{failed} of {kinds} probes failed."
    if "reference" in names:
        return f"{said} The right answer must earn the most: look at the grader, or at the template of it."
    if names & {"empty", "prompt_echo", "very_long", "injection", "everything", "another_row"}:
        return f"{said} A model could earn reward without answering: mend the grader before a run."
    if names & {"whitespace", "upper_case", "lower_case"}:
        return f"{said} Right answers, written otherwise, earn less: normalise them, unless you mean it."
    return f"{said} Look at what these answers earn before a run."


def _outputs(report: Mapping[str, Any]) -> Outputs:
    rewards, prompts = report["rewards"], report["prompts"]
    reading = f"{format.plural(report['n'], 'answer')}"
    if rewards["graded"]:
        reading += f", mean {format.score(rewards['mean'], 2)}, "
        reading += format.plural(rewards["distinct"], "distinct value")
    share, several = prompts["mixed_share"], prompts["with_several_answers"]
    signal = f"{prompts['mixed']} of {format.plural(several, 'prompt')} mixed"
    has_signal = share is None or share >= LEAST_MIXED
    if share is None:
        signal = "No prompt has two answers to compare"
    elif not has_signal:
        signal += ": almost no learning signal"
    ranked = sorted(report["results"], key=lambda one: (one["reward"] is not None, -(one["reward"] or 0.0)))
    shown = _spread(ranked, SHOWN)
    return Outputs(
        reading=reading,
        bars=_bars(rewards.get("histogram", [])),
        axis=_axis(rewards.get("histogram", [])),
        signal=signal,
        has_signal=has_signal,
        facts=_facts(rewards),
        errors=tuple(
            ErrorRow(
                row["error"], _WHOSE.get(row["fault"], row["fault"]), row["count"], str(row["example"] or "")
            )
            for row in report["errors"]
        ),
        samples=tuple(map(_sample, shown)),
        hidden=len(ranked) - len(shown),
    )


def _spread(ranked: list[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Return at most so many, evenly from the first to the last."""
    if len(ranked) <= most:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / (most - 1))] for place in range(most)]


def _facts(rewards: Mapping[str, Any]) -> tuple[Fact, ...]:
    facts = []
    if rewards["graded"]:
        low, high = format.score(rewards["min"], 2), format.score(rewards["max"], 2)
        facts.append(Fact("Range", f"{low} to {high}"))
        facts.append(Fact("Spread", f"{format.score(rewards['std'], 2)} standard deviation"))
        common = rewards["values"][0]
        of = f"{format.score(common['reward'], 2)}, {common['count']} of {rewards['graded']}"
        facts.append(Fact("Most common", of))
    if rewards["missing"]:
        facts.append(Fact("Not graded", format.plural(rewards["missing"], "answer")))
    return tuple(facts)


def _bars(histogram: Sequence[Mapping[str, Any]]) -> tuple[Bar, ...]:
    width, height = PICTURE
    most = max((bar["count"] for bar in histogram), default=0)
    slot = width / max(1, len(histogram))
    return tuple(
        Bar(
            x=round(place * slot + 1, 1),
            width=round(slot - 2, 1),
            height=round(bar["count"] / most * height, 1) if most else 0.0,
            label=f"{format.score(bar['from'], 2)} to {format.score(bar['to'], 2)}",
            count=bar["count"],
        )
        for place, bar in enumerate(histogram)
    )


def _axis(histogram: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    if not histogram:
        return "", ""
    return format.compact(histogram[0]["from"]), format.compact(histogram[-1]["to"])


def _sample(one: Mapping[str, Any]) -> SampleRow:
    parts = tuple(
        PartBar(name, reward, round(min(max(reward or 0.0, 0.0), 1.0) * 100, 1))
        for name, reward in one["sub_rewards"].items()
    )
    return SampleRow(
        one["item_index"], one["reward"], one["output_text"], parts, one["message"] or "", one["seconds"]
    )

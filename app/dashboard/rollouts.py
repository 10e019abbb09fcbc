"""The rollouts' page: the prompts of one step and split, and the chosen prompt's samples, best first."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import NotFound
from app.core.tables import Job
from app.dashboard import format, job_view, render
from app.dashboard.contexts import Turn
from app.dashboard.job_contexts import PromptRow, PromptView, RolloutsPage, SampleView, Segment
from app.dashboard.jobs import JobId
from app.dashboard.visitor import Parts, Reading, SignedIn
from app.services import files, jobs, rollouts
from app.services.dataset_rows import BadLine, Row
from app.services.datasets import read_rows
from app.services.evaluations import PASS

router = APIRouter()
SPLITS = {"train": "Training", "valid": "Validation", "test": "Test"}
SHOWN = 2000
_SEGMENT, _GAP, _HEIGHT = 18, 3, 10
Rollout = Mapping[str, Any]


@router.get("/finetune/{job_id}/rollouts")
def show_rollouts(
    job_id: JobId,
    visitor: SignedIn,
    session: Reading,
    context: Parts,
    split: str = "train",
    step: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    prompt: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
) -> Response:
    """Show every answer of one step, grouped by prompt."""
    job = jobs.get_job(session, project_id=visitor.project_id, job_id=job_id)
    steps: dict[str, list[int]] = {}
    for batch in rollouts.list_batches(session, job_id=job.id):
        steps.setdefault(batch.split, []).append(batch.step)
    shown = split if split in steps else next((name for name in SPLITS if name in steps), "train")
    there = steps.get(shown, [])
    at = step if step in there else (there[-1] if there else None)
    groups, is_cut = _groups(session, context, job, shown, at)
    items = _items(session, context, job, shown, set(groups))
    chosen = prompt if prompt in groups else next(iter(groups), None)
    page = RolloutsPage(
        frame=visitor.frame(session, title=f"Rollouts · {job_view.name_of(job)}", section="finetune"),
        job_id=job.id,
        job_name=job_view.name_of(job),
        split=shown,
        splits=tuple((name, label, _href(job, name)) for name, label in SPLITS.items() if name in steps),
        step=at,
        steps=tuple((value, _href(job, shown, value)) for value in _scrubber(there, at)),
        summary=_summary(groups),
        prompts=tuple(
            _row(index, group, items.get(index), _href(job, shown, at, index))
            for index, group in groups.items()
        ),
        prompt=None if chosen is None else _prompt(chosen, groups[chosen], items.get(chosen)),
        is_cut=is_cut,
    )
    return render.page("jobs/rollouts.html", page)


def _href(job: Job, split: str, step: int | None = None, prompt: int | None = None) -> str:
    wanted = {"split": split, "step": step, "prompt": prompt}
    return f"/finetune/{job.id}/rollouts?" + urlencode({k: v for k, v in wanted.items() if v is not None})


def _scrubber(steps: Sequence[int], at: int | None) -> list[int]:
    """Return about a dozen steps to pick from, the first, the last and the neighbours of `at` among them."""
    if len(steps) <= 12 or at is None:
        return list(steps)
    place = steps.index(at)
    stride = max(1, len(steps) // 8)
    near = {p for p in (place - 1, place, place + 1) if 0 <= p < len(steps)}
    places = set(range(0, len(steps), stride)) | near | {0, len(steps) - 1}
    return [steps[p] for p in sorted(places)]


def _groups(
    session: Session, context: Context, job: Job, split: str, step: int | None
) -> tuple[dict[int, list[Rollout]], bool]:
    if step is None:
        return {}, False
    page = rollouts.list_rollouts(
        session, storage=context.storage, job_id=job.id, step=step, split=split, limit=SHOWN
    )
    ordered = sorted(page.rows, key=lambda row: (row["item_index"], row["sample_index"]))
    return {k: list(v) for k, v in groupby(ordered, key=lambda row: row["item_index"])}, page.has_more


def _items(session: Session, context: Context, job: Job, split: str, wanted: set[int]) -> dict[int, Row]:
    """Return the dataset rows of the prompts; none when their file is gone."""
    held_out = job.validation_file or job.training_file
    file_id = {"train": job.training_file, "valid": held_out, "test": job.test_file}[split]
    if not wanted or file_id is None:
        return {}
    found = {}
    try:
        file = files.get_file(session, project_id=job.project_id, file_id=file_id)
        for row in read_rows(context.storage.path(files.file_uri(file))):
            if row.index in wanted:
                found[row.index] = row
            if len(found) == len(wanted):
                break
    except (NotFound, FileNotFoundError, BadLine):
        return found
    return found


def _rewards(group: Sequence[Rollout]) -> list[float]:
    return [row["reward"] for row in group if row["reward"] is not None]


def _has_signal(group: Sequence[Rollout]) -> bool:
    return len(set(_rewards(group))) > 1


def _summary(groups: Mapping[int, Sequence[Rollout]]) -> str:
    if not groups:
        return ""
    rewards = [reward for group in groups.values() for reward in _rewards(group)]
    samples = max(map(len, groups.values()))
    told = [f"{format.plural(len(groups), 'prompt')} × {format.plural(samples, 'sample')}"]
    if rewards:
        told.append(f"mean reward {format.score(sum(rewards) / len(rewards), 2)}")
    if samples > 1:
        silent = sum(not _has_signal(group) for group in groups.values())
        told.append(f"{format.plural(silent, 'prompt')} gave no signal")
    return " · ".join(told)


def _group_summary(group: Sequence[Rollout]) -> str:
    rewards = _rewards(group)
    if not rewards:
        return "no sample was graded"
    mean = sum(rewards) / len(rewards)
    passed = sum(reward >= PASS for reward in rewards)
    told = f"mean {format.score(mean, 2)} · passed {passed} of {len(group)}"
    return told if len(rewards) == len(group) else f"{told} · {len(group) - len(rewards)} not graded"


def _row(index: int, group: Sequence[Rollout], item: Row | None, href: str) -> PromptRow:
    segments = []
    for place, rollout in enumerate(sorted(group, key=_by_reward)):
        reward, x = rollout["reward"], place * (_SEGMENT + _GAP)
        if reward is None:
            segments.append(Segment("missing", x, _HEIGHT, 1.0))
        else:
            kind = "passed" if reward >= PASS else "failed"
            # Green and red are equally light: height tells them apart, opacity the reward.
            height = _HEIGHT if kind == "passed" else _HEIGHT // 2
            segments.append(Segment(kind, x, height, round(0.7 + 0.3 * min(max(reward, 0.0), 1.0), 2)))
    width = len(segments) * (_SEGMENT + _GAP) - _GAP
    is_single = len(group) == 1
    text = _asked(item) or f"Item {index}"
    summary = _group_summary(group)
    return PromptRow(index, text, tuple(segments), width, summary, is_single or _has_signal(group), href)


def _by_reward(rollout: Rollout) -> tuple[float, int]:
    reward = rollout["reward"]
    return (float("inf") if reward is None else -reward, rollout["sample_index"])


def _asked(item: Row | None) -> str:
    if item is None:
        return ""
    asked = [message["content"] for message in item.messages if message["role"] == "user"]
    return " ".join(str(asked[-1]).split())[:160] if asked else ""


def _prompt(index: int, group: Sequence[Rollout], item: Row | None) -> PromptView:
    turns = tuple(Turn(str(m["role"]), str(m["content"])) for m in item.messages) if item else ()
    reference = json.dumps(item.item, indent=2, ensure_ascii=False) if item and item.item else ""
    samples = tuple(_sample(rollout) for rollout in sorted(group, key=_by_reward))
    return PromptView(index, turns, reference, _group_summary(group), samples)


def _sample(rollout: Rollout) -> SampleView:
    reward = rollout["reward"]
    return SampleView(
        id=rollout["id"],
        number=rollout["sample_index"] + 1,
        reward=reward,
        is_passed=reward is not None and reward >= PASS,
        text=rollout["completion"],
        parts=tuple(rollout["grader_rewards"].items()),
        advantage=rollout["advantage"],
        tokens=rollout["tokens"]["completion"],
        finish_reason=rollout["finish_reason"],
        problems=tuple(name for name, value in rollout["errors"].items() if value is True),
    )

"""Rollouts: every graded answer of a job. Rows to list; texts in one compressed file a step and split.

Written by the runner in the step's transaction; read by api and dashboard.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import NotFound
from app.core.ids import new_id
from app.core.page import Page, read_page
from app.core.storage import Storage
from app.core.tables import Job, Rollout, RolloutBatch


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A rollout as the runner hands it over."""

    item_index: int
    sample_index: int
    completion: str
    reward: float | None
    advantage: float | None
    grader_rewards: Mapping[str, float | None]
    errors: Mapping[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    def flags(self) -> str:
        """Return the names of the error keys that are true."""
        return ",".join(name for name, value in self.errors.items() if value is True)

    def line(self) -> dict[str, Any]:
        """Return what the batch's file holds of it."""
        return {
            "completion": self.completion,
            "grader_rewards": dict(self.grader_rewards),
            "errors": {name: value for name, value in self.errors.items() if value},
        }


def encode_batch(records: Iterable[RolloutRecord]) -> Iterator[bytes]:
    """Yield the gzipped JSONL of a batch. The header's time is fixed, so equal rollouts give equal bytes."""
    text = "".join(json.dumps(record.line(), ensure_ascii=False) + "\n" for record in records)
    yield gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)


def batch_uri(*, job_id: str, step: int, split: str, token: int) -> str:
    """Return where a batch lies; the fencing token keeps two trainers from one name."""
    return f"jobs/{job_id}/rollouts/step-{step:06d}-{split}.tok-{token}.jsonl.gz"


def save_batch(
    session: Session, *, job_id: str, step: int, split: str, uri: str, records: Sequence[RolloutRecord]
) -> None:
    """Insert the rows of a batch whose file is durable already."""
    session.add(
        RolloutBatch(
            job_id=job_id, step=step, split=split, uri=uri, count=len(records), created_at=clock.now()
        )
    )
    session.flush()
    rows = [
        {
            "id": new_id("rollout"),
            "job_id": job_id,
            "step": step,
            "split": split,
            "item_index": record.item_index,
            "sample_index": record.sample_index,
            "position": position,
            "reward": record.reward,
            "advantage": record.advantage,
            "finish_reason": record.finish_reason,
            "flags": record.flags(),
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
        }
        for position, record in enumerate(records)
    ]
    if rows:
        session.execute(insert(Rollout), rows)


def has_batch(session: Session, *, job_id: str, step: int, split: str) -> bool:
    """Say whether a batch is committed."""
    return session.get(RolloutBatch, (job_id, step, split)) is not None


def list_rollouts(
    session: Session,
    *,
    storage: Storage,
    job_id: str,
    step: int | None = None,
    split: str | None = None,
    item_index: int | None = None,
    limit: int,
    after: str | None = None,
) -> Page[dict[str, Any]]:
    """Return a page of rollouts in the order they were committed, texts included, in their wire form.

    Raises: NotFound when the texts of one of them are gone.
    """
    query = select(Rollout).where(Rollout.job_id == job_id)
    if step is not None:
        query = query.where(Rollout.step == step)
    if split is not None:
        query = query.where(Rollout.split == split)
    if item_index is not None:
        query = query.where(Rollout.item_index == item_index)
    page = read_page(
        session,
        query,
        keys=[Rollout.number],
        id_column=Rollout.id,
        limit=limit,
        after=after,
        descending=False,
    )
    texts = _texts(session, storage, job_id, {(row.step, row.split) for row in page.rows})
    return Page([_object(row, texts[row.step, row.split]) for row in page.rows], page.has_more)


def list_batches(session: Session, *, job_id: str) -> Sequence[RolloutBatch]:
    """Return the steps and splits a job has rollouts of."""
    return session.scalars(
        select(RolloutBatch)
        .where(RolloutBatch.job_id == job_id)
        .order_by(RolloutBatch.step, RolloutBatch.split)
    ).all()


def rewards(session: Session, *, job_id: str, step: int, split: str) -> dict[int, float]:
    """Return each item's mean reward over its graded samples; an item without a grade is left out."""
    rows = session.execute(
        select(Rollout.item_index, func.avg(Rollout.reward))
        .where(
            Rollout.job_id == job_id,
            Rollout.step == step,
            Rollout.split == split,
            Rollout.reward.is_not(None),
        )
        .group_by(Rollout.item_index)
        .order_by(Rollout.item_index)
    ).all()
    return {item: float(mean) for item, mean in rows}


def forget_old(session: Session, *, before: float, limit: int = 100) -> Sequence[str]:
    """Drop the training rollouts of jobs that ended `before` a moment; return the URIs whose bytes may go.

    Those of the validation and test files stay: the verdict is computed from their rows.
    """
    ended = select(Job.id).where(Job.finished_at.is_not(None), Job.finished_at < before)
    batches = session.scalars(
        select(RolloutBatch).where(RolloutBatch.job_id.in_(ended), RolloutBatch.split == "train").limit(limit)
    ).all()
    for batch in batches:
        session.execute(
            delete(Rollout).where(
                Rollout.job_id == batch.job_id, Rollout.step == batch.step, Rollout.split == batch.split
            )
        )
        session.delete(batch)
    return [batch.uri for batch in batches]


def _texts(
    session: Session, storage: Storage, job_id: str, places: set[tuple[int, str]]
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    found = {}
    for step, split in places:
        # Either may go while a page is read: the row first, then the bytes.
        batch = session.get(RolloutBatch, (job_id, step, split))
        try:
            packed = b"".join(storage.chunks(batch.uri)) if batch else None
        except FileNotFoundError:
            packed = None
        if packed is None:
            raise NotFound(f"The answers of step {step} on the {split} file are no longer stored.")
        text = gzip.decompress(packed).decode()
        found[step, split] = [json.loads(line) for line in text.split("\n") if line]
    return found


def _object(row: Rollout, texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    text = texts[row.position]
    return {
        "object": "fine_tuning.job.rollout",
        "id": row.id,
        "step": row.step,
        "split": row.split,
        "item_index": row.item_index,
        "sample_index": row.sample_index,
        "completion": text["completion"],
        "reward": row.reward,
        "grader_rewards": text["grader_rewards"],
        "errors": text["errors"],
        "advantage": row.advantage,
        "finish_reason": row.finish_reason,
        "tokens": {"prompt": row.prompt_tokens, "completion": row.completion_tokens},
    }

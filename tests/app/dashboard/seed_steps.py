"""One step of a seeded job as the runner would write it: metrics event, checkpoint, rollouts.

Used by the seed and by tests that let a job go on under a reader's eyes.
"""

import math
import random

from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.tables import Job
from app.graders.result import GradeErrors
from app.services import checkpoints, events, models, rollouts
from app.services.rollouts import RolloutRecord


def metrics(step: int, total: int, draw: random.Random, *, valid: float | None) -> dict[str, object]:
    """Return one step's metrics as the worker writes them, on a curve that rises and levels off."""
    level = 0.27 + 0.62 * (1 - math.exp(-step / 5.5))
    train = min(0.99, max(0.02, level + draw.uniform(-0.09, 0.09)))
    silent = min(7, int(1 + step * 0.3))
    data: dict[str, object] = {
        "step": step,
        "total_steps": total,
        "scores": {"graders": []},
        "timing": {
            "step": {"eval": 1.9 if valid is not None else 0.0, "sampling": 4.1, "training": 5.2}
            | {"full_iteration": 11.6 if valid is not None else 9.8}
        },
        "tunesmith": {
            "groups": 8,
            "groups_without_signal": silent,
            "valid_ci95": None if valid is None else [max(valid - 0.09, 0.0), min(valid + 0.09, 1.0)],
            "loss": draw.uniform(-0.02, 0.02),
            "grad_norm": draw.uniform(0.2, 0.7),
            "kl": 0.004 * step,
            "sampler_trainer_kl": 0.0002,
            "entropy": max(0.1, 1.1 - 0.05 * step),
            "clip_fraction": 0.012,
            "truncated_fraction": 0.03,
            "tokens_per_second": 52.4,
            "learning_rate": 1e-4,
            "grading_seconds": 0.2,
            "grader_error_share": 0.0,
        },
    }
    if step:
        data |= {"train_mean_reward": train, "completion_tokens_mean": draw.uniform(14, 19)}
        data["scores"] = {"graders": [], "train_reward_mean": train}
    if valid is not None:
        data["full_valid_mean_reward"] = valid
        data["scores"] = {**data["scores"], "valid_reward_mean": valid}  # type: ignore[dict-item]
    return data


def add_step(session: Session, job: Job, step: int, draw: random.Random) -> None:
    """Write one step of a job as the runner would: its event, its row, its checkpoint."""
    valid = round(0.25 + 0.65 * (1 - math.exp(-step / 6)), 3) if step % 5 == 0 else None
    told = f"Step {step}/20 , train mean reward={0.27 + 0.03 * step:.2f}"
    data = metrics(step, 20, draw, valid=valid)
    events.append(session, job_id=job.id, type="metrics", message=told, data=data)
    session.flush()
    job.step = step
    if valid is None or step == 0:
        return
    name = models.tuned_name(start=job.model, organization="personal", suffix=job.suffix, step=step)
    checkpoints.keep(
        session,
        job=job,
        step=step,
        model_id=name,
        uri=f"jobs/{job.id}/step-{step}",
        metrics={key: data[key] for key in ("train_mean_reward", "completion_tokens_mean")},
        valid_reward_mean=valid,
    )
    events.append(
        session, job_id=job.id, message=f"Checkpoint created at step {step} with Snapshot ID: {name}"
    )


def sample(
    session: Session,
    context: Context,
    job: Job,
    step: int,
    split: str,
    items: range,
    samples: int,
    level: float,
    draw: random.Random,
) -> None:
    """Write the rollouts of one step and split, right with about the chance `level`."""
    records = []
    for item in items:
        chance = min(1.0, max(0.0, draw.gauss(level, 0.3)))
        rewards = [1.0 if draw.random() < chance else 0.0 for _ in range(samples)]
        mean = sum(rewards) / samples
        for place, reward in enumerate(rewards):
            number = f"H{38_120 + item}" if reward else draw.choice(["2026-118", "555-0147", "H3812"])
            records.append(
                RolloutRecord(
                    item_index=item,
                    sample_index=place,
                    completion=f'{{"order_number": "{number}"}}',
                    reward=reward,
                    advantage=reward - mean if split == "train" else None,
                    grader_rewards={"exact": reward, "well_formed": 1.0},
                    errors=GradeErrors().to_dict(),
                    finish_reason="stop",
                    prompt_tokens=58,
                    completion_tokens=draw.randrange(11, 22),
                )
            )
    uri = rollouts.batch_uri(job_id=job.id, step=step, split=split, token=1)
    context.storage.write(uri, rollouts.encode_batch(records))
    rollouts.save_batch(session, job_id=job.id, step=step, split=split, uri=uri, records=records)

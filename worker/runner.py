"""Runs one claimed job: the only module that knows both the database and the engine.

`Run` trains the job its lease names; checking its files first is `validation.py`. Bytes are durable
before the short, fenced transaction that names them, so a reader never meets a name without its bytes.
Called by the trainer process, which owns the heartbeat.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.engines import Served
from app.core.errors import StorageFull, Unavailable
from app.core.tables import Job, Step
from app.graders.result import Tokens
from app.graders.sandbox.level import SandboxUnavailable
from app.services import checkpoints, events, files, inference, leases, models, rollouts
from app.services.leases import Lease
from app.services.rollouts import RolloutRecord
from worker import metrics, results
from worker.engine.errors import EngineError
from worker.engine.evaluate import evaluate
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import EvaluationReport, ScoredRollout, StepReport
from worker.equipment import equipped
from worker.grader_faults import GraderFailing
from worker.metrics import Graded
from worker.plan import Plan, PlanError
from worker.scoring import Scorer


class Stopped(Exception):
    """The worker was asked to stop while nothing was half done."""


class Run:
    """One trainer's work on one job, from its last checkpoint to its end, a pause, or a stop."""

    def __init__(self, context: Context, lease: Lease, stopping: Callable[[], bool]) -> None:
        self.context = context
        self.lease = lease
        self._stopping = stopping
        self._stale: list[str] = []

    def train(self) -> None:
        """Train the job.

        Raises: LeaseLost when the job is no longer ours. A failure that trying again can't mend ends
        the job here; any other exception leaves it to the next attempt.
        """
        try:
            self._train()
        except Stopped:
            with self.context.db.transaction() as session:
                leases.release(session, lease=self.lease)
        except (MemoryError, torch.OutOfMemoryError) as problem:
            self._fail(
                "out_of_memory",
                f"The model and its answers do not fit into memory ({problem}). Use a smaller model, shorter "
                "prompts, or a lower max_completion_tokens.",
            )
        except PlanError as problem:
            self._fail(problem.code, str(problem), problem.param)
        except EngineError as problem:
            self._fail(problem.code, f"Training failed: {problem} Checkpoints made before stay usable.")
        except GraderFailing as problem:
            self._pause(str(problem), problem.data, problem.tokens)
        except SandboxUnavailable as problem:
            self._fail("grader_sandbox_unavailable", problem.message)
        except Unavailable as problem:
            self._pause(f"{problem.message} The job is paused: mend it, then resume the job.")
        except (OSError, StorageFull) as problem:
            if isinstance(problem, OSError) and problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._pause(f"disk_full: {problem} The job is paused: free some space, then resume it.")

    def _train(self) -> None:
        plan = Plan.of(self.context, self._job())
        with self.context.db.transaction() as session:
            leases.begin(
                session, lease=self.lease, resolved=plan.resolved, total_steps=plan.config.total_steps
            )
            for note in plan.notes:
                events.append(session, job_id=self.lease.job_id, message=note)
        settings = self.context.settings
        with equipped(settings, plan.grader, served=self._own_judges(plan)) as equipment:
            self._note(equipment.notes)
            policy = Policy.load(plan.model_dir, config=plan.config)
            if policy.note is not None and self._job().checkpoint_uri is None:
                self._note([("info", policy.note)])
            if plan.start is not None:
                policy.load_adapter(plan.start)
            plan = plan.encoded(policy)
            with plan.scorer(settings, equipment.means) as scorer:
                scorer.bad_steps = self._bad_steps()
                self._measure(policy, plan, scorer, step=0)
                if not self._steps(policy, plan, scorer):
                    return
                self._measure(policy, plan, scorer, step=plan.config.total_steps)
        self._finish(policy, plan)

    def _own_judges(self, plan: Plan) -> dict[str, Served]:
        project_id = self._job().project_id
        return inference.own_judges(self.context, project_id=project_id, grader=plan.grader)

    def _note(self, notes: Sequence[tuple[str, str]]) -> None:
        with self.context.db.transaction() as session:
            for level, message in notes:
                events.append(session, job_id=self.lease.job_id, level=level, message=message)

    def _steps(self, policy: Policy, plan: Plan, scorer: Scorer) -> bool:
        """Train step by step; return whether the last step is done."""
        run = Reinforcement(
            policy,
            train_prompts=plan.prompts["train"],
            valid_prompts=plan.prompts["valid"],
            score=scorer,
            config=plan.config,
            grammar=plan.grammar,
            resume=self._resume_from(),
            resume_sha256=self._job().checkpoint_sha256,
            base_line=not self._has_step(0),
            on_answer=scorer.begin,
        )
        for report in run.steps():
            status = self._commit(run, policy, plan, scorer, report)
            if status == "pausing" and report.step:
                self._park(policy, report)
                return False
            if self._stopping():
                raise Stopped
        return True

    def _commit(
        self, run: Reinforcement, policy: Policy, plan: Plan, scorer: Scorer, report: StepReport
    ) -> str:
        """Make a step durable, then true; return the job's status."""
        train = _graded(report.rollouts, scorer)
        valid = _graded(report.validation.rollouts if report.validation else (), scorer)
        data = metrics.metrics(report, plan.grader, train, valid)
        data["tunesmith"]["bad_steps"] = scorer.bad_steps
        batches = [
            self._write_batch(report.step, split, graded)
            for split, graded in (("train", train), ("valid", valid))
            if graded
        ]
        checkpoint = self._save_recovery(run, report.step) if report.step else None
        reward = report.validation.reward_mean if report.validation else None
        kept = None
        if report.step and report.validation is not None and self._would_keep(reward):
            kept = self._save_adapter(policy, f"checkpoints/step-{report.step:06d}")
        plan.pace.add(report)
        with self.context.db.transaction() as session:
            status = leases.commit_step(
                session,
                lease=self.lease,
                step=report.step,
                lease_seconds=self.context.settings.lease_seconds,
                metrics=data,
                message=metrics.message(data),
                checkpoint=checkpoint,
                training_seconds=report.metrics.iteration_seconds,
                remaining_seconds=plan.pace.remaining(report.step),
            )
            leases.spend(session, lease=self.lease, tokens=metrics.grader_tokens([*train, *valid]))
            for note in run.notes:
                events.append(session, job_id=self.lease.job_id, level="warn", message=note)
            for uri, split, graded in batches:
                self._name_batch(session, report.step, split, uri, graded)
            dropped = self._name_checkpoint(session, report.step, kept, data, reward) if kept else []
        run.notes.clear()
        self._remove([*self._stale, *dropped])
        self._stale = [checkpoint[0]] if checkpoint else []
        return status

    def _measure(self, policy: Policy, plan: Plan, scorer: Scorer, *, step: int) -> None:
        """Answer the test file once, greedily: the base before step 1, the tuned model at the end."""
        prompts = plan.prompts["test"]
        with self.context.db.reading() as session:
            done = rollouts.has_batch(session, job_id=self.lease.job_id, step=step, split="test")
        if not prompts or done:
            return
        report: EvaluationReport = evaluate(
            policy,
            prompts=prompts,
            score=scorer,
            split="test",
            step=step,
            samples=1,
            max_completion_tokens=plan.config.max_completion_tokens,
            temperature=0.0,
            seed=plan.config.seed,
            grammar=plan.grammar,
            adapter=step > 0 or policy.is_tuned,
            on_progress=self._go_on,
            on_answer=scorer.begin,
        )
        graded = _graded(report.rollouts, scorer)
        uri, split, _ = self._write_batch(step, "test", graded)
        with self.context.db.transaction() as session:
            leases.beat(session, lease=self.lease, seconds=self.context.settings.lease_seconds)
            leases.spend(session, lease=self.lease, tokens=metrics.grader_tokens(graded))
            self._name_batch(session, step, split, uri, graded)

    def _finish(self, policy: Policy, plan: Plan) -> None:
        job = self._job()
        uri = self._save_adapter(policy, "model")
        with self.context.db.reading() as session:
            text = results.table(session, job_id=job.id)
        stored = files.store_upload(self.context.storage, project_id=job.project_id, chunks=[text])
        with files.kept_if_named(self.context.storage, stored), self.context.db.transaction() as session:
            file = results.name_file(session, stored=stored)
            name = models.tuned_name(
                start=job.model, organization=self.context.settings.organization, suffix=job.suffix
            )
            details = {"step": plan.config.total_steps}
            models.add_tuned(session, job=job, model_id=name, kind="tuned", uri=uri, details=details)
            leases.succeed(session, lease=self.lease, model_id=name, result_file=file.id)
        self._remove(self._stale)

    def _park(self, policy: Policy, report: StepReport) -> None:
        """Pause as asked, leaving a usable model."""
        uri = self._save_adapter(policy, f"checkpoints/paused-{report.step:06d}")
        with self.context.db.transaction() as session:
            job = session.get_one(Job, self.lease.job_id)
            leases.park(session, lease=self.lease, message=f"Fine-tuning job paused at step {report.step}")
            if not checkpoints.at_step(session, job_id=job.id, step=report.step):
                self._name_checkpoint(session, report.step, uri, {"step": report.step}, None)

    def _go_on(self, _done: int, _all: int) -> None:
        if self._stopping():
            raise Stopped

    def _pause(
        self, message: str, data: dict[str, Any] | None = None, tokens: Mapping[str, Tokens] | None = None
    ) -> None:
        """Pause unasked, at the last committed step, until a person has mended what the message names."""
        with self.context.db.transaction() as session:
            leases.park(session, lease=self.lease, message=message, level="error", data=data)
            leases.spend(session, lease=self.lease, tokens=tokens or {})

    def _fail(self, code: str, message: str, param: str | None = None) -> None:
        with self.context.db.transaction() as session:
            leases.fail(session, lease=self.lease, code=code, message=message, param=param)

    # What is written to storage, and how rows come to name it

    def _write_batch(
        self, step: int, split: str, graded: Sequence[Graded]
    ) -> tuple[str, str, Sequence[Graded]]:
        uri = rollouts.batch_uri(job_id=self.lease.job_id, step=step, split=split, token=self.lease.token)
        self.context.storage.write(uri, rollouts.encode_batch(_record(one) for one in graded))
        return uri, split, graded

    def _name_batch(
        self, session: Session, step: int, split: str, uri: str, graded: Sequence[Graded]
    ) -> None:
        rollouts.save_batch(
            session,
            job_id=self.lease.job_id,
            step=step,
            split=split,
            uri=uri,
            records=[_record(one) for one in graded],
        )

    def _name_checkpoint(
        self,
        session: Session,
        step: int,
        uri: str,
        data: dict[str, object],
        reward: float | None,
    ) -> Sequence[str]:
        job = session.get_one(Job, self.lease.job_id)
        name = models.tuned_name(
            start=job.model,
            organization=self.context.settings.organization,
            suffix=job.suffix,
            step=step,
        )
        message = f"Checkpoint created at step {step} with Snapshot ID: {name}"
        events.append(session, job_id=job.id, message=message)
        return checkpoints.keep(
            session,
            job=job,
            step=step,
            model_id=name,
            uri=uri,
            metrics=metrics.checkpoint_metrics(data),
            valid_reward_mean=reward,
        )

    def _save_recovery(self, run: Reinforcement, step: int) -> tuple[str, str]:
        uri = f"jobs/{self.lease.job_id}/recovery/step-{step:06d}.tok-{self.lease.token}"
        return uri, run.save_checkpoint(self._empty(uri))

    def _save_adapter(self, policy: Policy, name: str) -> str:
        uri = f"jobs/{self.lease.job_id}/{name}.tok-{self.lease.token}"
        with self.context.storage.writing_directory(uri) as directory:
            policy.save_adapter(directory)
        return uri

    def _empty(self, uri: str) -> Path:
        """Return where `uri` will lie, clear of what an uncommitted try may have left there."""
        self.context.storage.remove(uri)
        return self.context.storage.path(uri)

    def _remove(self, uris: Sequence[str]) -> None:
        for uri in uris:
            self.context.storage.remove(uri)

    # What the row says

    def _job(self) -> Job:
        with self.context.db.reading() as session:
            return session.get_one(Job, self.lease.job_id)

    def _has_step(self, step: int) -> bool:
        with self.context.db.reading() as session:
            return session.get(Step, (self.lease.job_id, step)) is not None

    def _bad_steps(self) -> int:
        """Return how many of the latest committed steps in a row were graded badly."""
        with self.context.db.reading() as session:
            last = session.get(Step, (self.lease.job_id, session.get_one(Job, self.lease.job_id).step))
        return int(last.metrics["tunesmith"].get("bad_steps", 0)) if last else 0

    def _would_keep(self, reward: float | None) -> bool:
        with self.context.db.reading() as session:
            return checkpoints.is_kept(session, job_id=self.lease.job_id, valid_reward_mean=reward)

    def _resume_from(self) -> Path | None:
        uri = self._job().checkpoint_uri
        self._stale = [uri] if uri else []
        return self.context.storage.path(uri) if uri else None


def _graded(scored: Sequence[ScoredRollout], scorer: Scorer) -> list[Graded]:
    return [Graded(one, scorer.take(one.rollout)) for one in scored]


def _record(one: Graded) -> RolloutRecord:
    rollout = one.scored.rollout
    return RolloutRecord(
        item_index=rollout.item_index,
        sample_index=rollout.sample_index,
        completion=rollout.text,
        reward=one.scored.reward,
        advantage=one.scored.advantage,
        grader_rewards=one.grade.parts,
        errors=one.grade.errors.to_dict(),
        finish_reason=rollout.finish_reason,
        prompt_tokens=rollout.prompt_tokens,
        completion_tokens=len(rollout.token_ids),
    )

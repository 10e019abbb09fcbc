"""One model as its page shows it: lineage, verdict, its siblings, whether it answers, its exports.

Reads services, decides nothing about models. Called by the models' routes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.core.tables import Export, File, Job, Model
from app.dashboard import addresses, format, job_view
from app.dashboard.contexts import Chip, Fact, Frame
from app.dashboard.job_contexts import Verdict
from app.dashboard.model_contexts import (
    ExportRow,
    ExportsView,
    Link,
    ModelPage,
    ServingView,
    Sibling,
)
from app.dashboard.verdict import verdict_at
from app.dashboard.visitor import Visitor
from app.services import checkpoints, exports
from app.services.serving import Serving

_SERVING = {
    "loaded": ("Serving", "good", "solid"),
    "ready": ("Ready to load", "info", "hollow"),
    "elsewhere": ("Serving", "good", "solid"),
    "stopped": ("Stopped", "neutral", "struck"),
    "down": ("Not answering", "bad", "solid"),
}
_FORMS = {
    "adapter": ("LoRA adapter", "PEFT's layout; needs its base model"),
    "merged": ("Merged weights", "safetensors; stands alone"),
    "gguf": ("GGUF, 16 bit", "one file for llama.cpp and its kin"),
}
_EXPORTING = {
    "queued": ("Waiting", "neutral", "hollow"),
    "running": ("Building", "info", "solid"),
    "ready": ("Ready", "good", "solid"),
    "refused": ("Kept back", "bad", "solid"),
    "failed": ("Failed", "bad", "solid"),
}


def page(session: Session, visitor: Visitor, model: Model, *, state: Serving, base_url: str) -> ModelPage:
    """Return everything a model's page shows."""
    frame = visitor.frame(session, title=model.id, section="models")
    is_own = model.project_id == visitor.project_id
    # What another project shares is the model, not how it came about.
    job = session.get(Job, model.job_id) if model.job_id and is_own else None
    step = model.details.get("step")
    return ModelPage(
        frame=frame,
        id=model.id,
        address=addresses.model(model.id),
        kind={"base": "Base model", "tuned": "Tuned model"}.get(model.kind, f"Checkpoint of step {step}"),
        facts=tuple(_facts(model, job)),
        lineage=tuple(_lineage(session, model, job)) if job is not None else (),
        verdict=_verdict(session, model, job) if job is not None else None,
        siblings=tuple(_siblings(session, model, job)) if job is not None else (),
        serving=_serving(model, state, base_url, is_own),
        exports=exports_of(session, model, frame) if is_own and model.kind != "base" else None,
        can_delete=is_own and model.kind != "base",
        playground=addresses.playground(
            model.id,
            compare=model.base_model if model.kind != "base" else None,
            job_id=model.job_id if is_own else None,
        ),
    )


def size_of(details: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of a base model's size and licence, in words, by label."""
    told = {}
    parameters = details.get("parameters")
    if isinstance(parameters, int | float):
        told["Size"] = f"{format.parameters(parameters)} parameters"
    if isinstance(details.get("context"), int):
        told["Context"] = f"{details['context']:,} tokens of context"
    if isinstance(details.get("weights_bytes"), int):
        told["Weights"] = format.size(details["weights_bytes"])
    if details.get("licence"):
        told["Licence"] = str(details["licence"])
    return told


def _facts(model: Model, job: Job | None) -> Iterator[Fact]:
    yield Fact("Model ID", model.id, mono=True, copies=True)
    if model.kind == "base":
        for label, value in size_of(model.details).items():
            yield Fact(label, value)
    else:
        yield Fact("Base model", model.base_model, mono=True, href=addresses.model(model.base_model))
    if job is not None and job.model != model.base_model:
        yield Fact("Tuned from", job.model, mono=True, href=addresses.model(job.model))
    yield Fact("Made", format.absolute(model.created_at), moment=model.created_at)


def _lineage(session: Session, model: Model, job: Job) -> Iterator[Link]:
    """Yield file hash > grader version > job > checkpoint. Source: ui.md, section 3."""
    file = session.get(File, job.training_file)
    name = file.filename if file is not None else "Deleted"
    mark = f"sha256 {file.sha256[:12]}" if file is not None else job.training_file
    yield Link("Data", name, mark, f"/storage/files/{file.id}" if file is not None else None)
    grader = job.method["reinforcement"]["grader"]
    saved = list((job.saved_graders or {}).values())
    versions = [f"version {one['version']}" for one in saved]
    href = f"/graders/{saved[0]['id']}?v={saved[0]['version']}" if saved else None
    yield Link("Grader", grader.get("name") or grader["type"], ", ".join(versions) or grader["type"], href)
    yield Link("Job", job_view.name_of(job), job.id, f"/finetune/{job.id}")
    step = model.details.get("step")
    told = f"step {step} of {job.total_steps}" if step is not None else "last step"
    yield Link("Final model" if model.kind == "tuned" else "Checkpoint", told, model.id, None)


def _verdict(session: Session, model: Model, job: Job) -> Verdict | None:
    """Return the job's verdict for its last model, and for a checkpoint what was measured at its step."""
    return verdict_at(session, job, model.details.get("step") if model.kind == "checkpoint" else None)


def _siblings(session: Session, model: Model, job: Job) -> Iterator[Sibling]:
    if job.fine_tuned_model is not None and session.get(Model, job.fine_tuned_model) is not None:
        yield Sibling(
            id=job.fine_tuned_model,
            href=addresses.model(job.fine_tuned_model),
            step=job.total_steps,
            valid=None,
            note="Final model",
            is_this=job.fine_tuned_model == model.id,
        )
    for row in checkpoints.list_checkpoints(session, job_id=job.id, limit=20).rows:
        yield Sibling(
            id=row.model_id,
            href=addresses.model(row.model_id),
            step=row.step_number,
            valid=row.valid_reward_mean,
            note="Checkpoint" if row.valid_reward_mean is not None else "Paused here",
            is_this=row.model_id == model.id,
        )


def _serving(model: Model, state: Serving, base_url: str, is_own: bool) -> ServingView:
    words, tone, shape = _SERVING[state.state]
    return ServingView(
        chip=Chip(state.state, words, tone, shape),
        words=state.words,
        can_stop=is_own and model.kind != "base" and state.state in ("loaded", "ready"),
        can_load=is_own and model.kind != "base" and state.state == "stopped",
        base_url=base_url,
        curl=(
            f"curl {base_url}/chat/completions \\\n"
            '  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n'
            '  -H "Content-Type: application/json" \\\n'
            f'  -d \'{{"model": "{model.id}",\n'
            '       "messages": [{"role": "user", "content": "Hello"}]}\''
        ),
        python=(
            "from openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{base_url}")  # the key: OPENAI_API_KEY\n'
            "answer = client.chat.completions.create(\n"
            f'    model="{model.id}",\n'
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            ")\n"
            "print(answer.choices[0].message.content)"
        ),
    )


def exports_of(session: Session, model: Model, frame: Frame) -> ExportsView:
    """Return a model's exports, those that were never asked for among them."""
    found = exports.list_exports(session, model_id=model.id)
    address = f"{addresses.model(model.id)}/exports"
    rows = tuple(
        _export_row(form, found.get(form), address, exports.why_not(session, model=model, form=form))
        for form in exports.FORMS
    )
    return ExportsView(frame, address, rows, any(row.percent is not None for row in rows))


def _export_row(form: str, export: Export | None, address: str, obstacle: str | None) -> ExportRow:
    title, what = _FORMS[form]
    status = None if export is None else export.status
    is_building = status in ("queued", "running")
    is_over = export is not None and not is_building
    return ExportRow(
        form=form,
        title=title,
        what=what,
        chip=None if status is None else Chip(status, *_EXPORTING[status]),
        stage=export.stage if export is not None and is_building else "",
        percent=round(100 * export.progress) if export is not None and is_building else None,
        bytes=export.bytes if export is not None else None,
        seconds=_seconds(export) if is_over else None,
        sha256=export.sha256 if export is not None else None,
        parity=_parity(export.parity) if export is not None and export.parity else "",
        reason=obstacle if export is None else export.reason,
        href=f"{address}/{form}" if status == "ready" else None,
        can_build=(export is None and obstacle is None) or status in ("refused", "failed"),
        build_verb="Build" if export is None else "Build again",
        delete_verb={"ready": "Remove", "queued": "Cancel", "running": "Cancel"}.get(status or "", ""),
    )


def _seconds(export: Export | None) -> float | None:
    if export is None or export.finished_at is None or export.started_at is None:
        return None
    return export.finished_at - export.started_at


def _parity(found: Mapping[str, Any]) -> str:
    """Say what the gate measured."""
    texts = f"{found['same_texts']} of {found['prompts']} greedy texts equal"
    if found["near_ties"]:
        texts += f", {found['near_ties']} part at a tie"
    agreement = format.percent(found["agreement"], 2)
    return f"Next token agrees at {agreement} of {found['positions']:,} places · {texts}"

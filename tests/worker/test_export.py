"""Exports from the row to the archive: written, loaded again from disk, compared, offered or kept back."""

import json
import os
import signal
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from app.core.context import Context
from app.core.tables import Export, File, Job, Model
from app.services import exports, models
from app.services.exports import Lease, LeaseLost
from tests.tiny_model import CHAT_TEMPLATE
from tests.worker.conftest import MakeJob, rows
from tests.worker.test_runner import read, work
from worker import retention
from worker.engine.policy import Policy
from worker.export import __main__ as process
from worker.export import forms, parity
from worker.export.source import ExportImpossible
from worker.exporter import Exporter


@pytest.fixture
def tuned(context: Context, create: MakeJob) -> Job:
    """A job that has succeeded, whose adapter moves the tiny model well away from its base."""
    numbers = {"learning_rate_multiplier": 20.0}
    job = create(valid=rows(3), test=rows(5), suffix="Say A", hyperparameters=numbers)
    work(context)
    work(context)
    return read(context, job)


def ask(context: Context, job: Job, form: str) -> Lease:
    """Ask for an export of the job's model and claim it."""
    with context.db.transaction() as session:
        model_id = job.fine_tuned_model or ""
        exports.ask(session, project_id=job.project_id, model_id=model_id, form=form)
        lease = exports.claim(session, seconds=600)
    assert lease is not None
    return lease


def row(context: Context, lease: Lease) -> Export:
    """Read an export afresh."""
    with context.db.reading() as session:
        return session.get_one(Export, lease.export_id)


def left(context: Context, job: Job) -> list[str]:
    """Return what lies in the job's folder of exports."""
    folder = context.storage.path(f"jobs/{job.id}/exports")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def unpacked(context: Context, export: Export, folder: Path) -> Path:
    """Unpack an archive that is what its row says, and return its one folder."""
    path = context.storage.path(export.uri or "")
    assert (path.stat().st_size, sha256(path.read_bytes()).hexdigest()) == (export.bytes, export.sha256)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    (root,) = folder.iterdir()
    return root


def test_every_form_is_offered_after_it_was_loaded_again_and_compared(
    context: Context, tuned: Job, tmp_path: Path
) -> None:
    """One job, three archives: what is in them, and that their numbers are the trained model's."""
    with context.db.reading() as session:
        uri = session.get_one(Model, tuned.fine_tuned_model).uri or ""
        train = session.get_one(File, tuned.training_file).sha256
    adapter = context.storage.path(uri)
    folders = {}
    for form in exports.FORMS:
        lease = ask(context, tuned, form)
        process.build(context, lease)
        export = row(context, lease)
        assert (export.status, export.reason, export.progress) == ("ready", None, 1.0), export.reason
        found = export.parity or {}
        # Five of the test file, three that validate, twelve trained on, and general ones after them.
        assert (found["prompts"], found["from_data"], found["same_tokens"]) == (32, 20, 32)
        assert found["passed"]
        assert found["agreement"] >= found["required_agreement"]
        folders[form] = unpacked(context, export, tmp_path / form)
        names = {path.name for path in folders[form].iterdir()}
        assert {"README.md", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
        card = (folders[form] / "README.md").read_text(encoding="utf-8")
        base = sha256((context.settings.models / "tiny" / "model.safetensors").read_bytes()).hexdigest()
        for said in (base, train, tuned.id, "says a", "string_check", "95% interval", "| difference |"):
            assert said in card, said
    assert left(context, tuned) == sorted(
        f"{form}-{export.id}.tok-1" for form, export in listed(context, tuned).items()
    )

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folders["adapter"] / name).read_bytes() == (adapter / name).read_bytes()
    weights = load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    layer = "model.layers.1.mlp.up_proj"
    down, up = (weights[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
    before = load_file(context.settings.models / "tiny" / "model.safetensors")[f"{layer}.weight"]
    expected = before + settings["lora_alpha"] / settings["r"] * (up @ down)
    merged = load_file(folders["merged"] / "model.safetensors")[f"{layer}.weight"]
    assert torch.equal(merged, expected) or torch.allclose(merged, expected, atol=1e-6)
    assert not torch.allclose(merged, before, atol=1e-4)
    reader = GGUFReader(folders["gguf"] / "model-f16.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert torch.equal(torch.from_numpy(stored["blk.1.ffn_up.weight"].data.copy()), expected.half())
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE


def listed(context: Context, job: Job) -> dict[str, Export]:
    """Return the exports of the job's model."""
    with context.db.reading() as session:
        return exports.list_exports(session, model_id=job.fine_tuned_model or "")


def test_an_archive_that_answers_otherwise_is_kept_back(
    context: Context, tuned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight is wrong on disk, as after a faulty conversion: refused, with figures, and no byte left."""
    write = forms.write

    def write_wrongly(source: Any, folder: Path) -> None:
        write(source, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.down_proj.weight"] += 0.05
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(forms, "write", write_wrongly)
    lease = ask(context, tuned, "merged")
    process.build(context, lease)
    export = row(context, lease)
    assert (export.status, export.uri, export.sha256) == ("refused", None, None)
    assert export.reason is not None
    assert export.reason.startswith(
        "It does not answer as the trained model does. A token's log-prob differs by"
    )
    assert export.parity is not None
    assert not export.parity["passed"]
    assert export.parity["gap"] > export.parity["allowed_gap"]
    assert left(context, tuned) == []
    with context.db.reading() as session:
        error = exports.obstacle_to_download(session, export=export)
    assert error is not None
    assert (error.status, error.code) == (400, "export_refused")
    assert export.reason in error.message


def test_an_archive_without_its_adapter_is_kept_back(
    context: Context, tuned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits, where the numbers may differ by more than a light run moves them."""
    write = forms.write

    def write_base(source: Any, folder: Path) -> None:
        write(source, folder)
        tensors = load_file(context.settings.models / "tiny" / "model.safetensors")
        moved = load_file(folder / "model.safetensors")
        assert any(not torch.equal(moved[name], tensors[name]) for name in tensors)
        save_file(
            {name: tensor.bfloat16() for name, tensor in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )

    monkeypatch.setattr(forms, "write", write_base)
    monkeypatch.setattr(forms, "dtype_of", lambda _: "bfloat16")
    monkeypatch.setitem(parity.TOLERANCES, "bfloat16", parity.Tolerance(agreement=0.0, gap=100.0))
    lease = ask(context, tuned, "merged")
    process.build(context, lease)
    export = row(context, lease)
    assert export.status == "refused"
    assert "It is nearer to the base model than to the trained one." in (export.reason or "")


def test_prompts_too_long_for_the_gate_make_way_for_others(
    context: Context, tuned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the job's own are too long here: general ones are asked, and the figures say so."""
    lengths = []
    encode = Policy.encode_chat

    def long(policy: Policy, messages: Any) -> tuple[int, ...]:
        tokens = encode(policy, messages)
        is_own = len(lengths) < 20  # five, three and twelve
        lengths.append(len(tokens))
        return tokens * 100 if is_own else tokens

    monkeypatch.setattr(Policy, "encode_chat", long)
    lease = ask(context, tuned, "adapter")
    process.build(context, lease)
    export = row(context, lease)
    assert export.status == "ready", export.reason
    assert export.parity is not None
    assert (export.parity["prompts"], export.parity["from_data"]) == (32, 0)
    monkeypatch.setattr(parity, "PROMPT_TOKENS", 2)
    with context.db.transaction() as session:
        exports.forget(
            session,
            storage=context.storage,
            project_id=tuned.project_id,
            model_id=tuned.fine_tuned_model or "",
            form="adapter",
        )
    lease = ask(context, tuned, "adapter")
    with pytest.raises(ExportImpossible, match="fits into 2 tokens"):
        process.build(context, lease)


def test_a_model_deleted_while_it_is_exported_leaves_nothing(
    context: Context, tuned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = forms.write

    def delete_meanwhile(source: Any, folder: Path) -> None:
        write(source, folder)
        with context.db.transaction() as session:
            models.delete_model(
                session,
                storage=context.storage,
                project_id=tuned.project_id,
                model_id=tuned.fine_tuned_model or "",
            )

    monkeypatch.setattr(forms, "write", delete_meanwhile)
    lease = ask(context, tuned, "adapter")
    with pytest.raises(LeaseLost):
        process.build(context, lease)
    assert left(context, tuned) == []
    with context.db.reading() as session:
        assert session.get(Export, lease.export_id) is None


def test_the_bytes_go_with_the_model_and_unnamed_ones_with_the_hour(context: Context, tuned: Job) -> None:
    lease = ask(context, tuned, "adapter")
    process.build(context, lease)
    stray = context.storage.path(f"jobs/{tuned.id}/exports/merged-export_x.tok-1.building")
    stray.mkdir()
    # One that is being made has its name in the row.
    made = ask(context, tuned, "gguf")
    at_work = context.storage.path(exports.uri_of(tuned.id, "gguf", made) + exports.BUILDING)
    at_work.mkdir()
    assert len(left(context, tuned)) == 3
    removed = retention.remove_unnamed(context, older_than=-1.0)
    assert [uri for uri in removed if "/exports/" in uri] == [f"jobs/{tuned.id}/exports/{stray.name}"]
    assert sorted(left(context, tuned))[1:] == [at_work.name]
    at_work.rmdir()
    with context.db.transaction() as session:
        models.delete_model(
            session,
            storage=context.storage,
            project_id=tuned.project_id,
            model_id=tuned.fine_tuned_model or "",
        )
    assert left(context, tuned) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("room", "The disk has 0.0 GB free"),
        ("base", "There is no base model 'tiny'"),
        ("adapter", "are gone"),
    ],
)
def test_what_can_not_be_built_is_given_up_with_its_reason(
    context: Context, tuned: Job, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    if fault == "room":
        monkeypatch.setattr(process.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    elif fault == "base":
        (context.settings.models / "tiny" / "config.json").unlink()
    else:
        with context.db.reading() as session:
            uri = session.get_one(Model, tuned.fine_tuned_model).uri or ""
        context.storage.remove(uri)
    lease = ask(context, tuned, "adapter")
    with pytest.raises(Exception, match=said) as caught:
        process.build(context, lease)
    assert process._give_up(context, lease, caught.value) == process.DONE
    export = row(context, lease)
    assert export.status == "failed"
    assert said in (export.reason or "")
    assert left(context, tuned) == []


def test_a_process_that_is_killed_is_tried_once_more(
    context: Context, tuned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real process, killed at once, then let alone: offered. Killed each time: given up with a reason."""
    given = {"DATA": context.settings.root, "MODELS": context.settings.models, "THREADS": 1}
    for name, value in given.items():
        monkeypatch.setenv(f"TUNESMITH_{name}", str(value))
    exporter = Exporter(context)
    model_id = tuned.fine_tuned_model or ""
    with context.db.transaction() as session:
        exports.ask(session, project_id=tuned.project_id, model_id=model_id, form="adapter")
    _kill(exporter)
    assert (listed(context, tuned)["adapter"].status, listed(context, tuned)["adapter"].attempts) == (
        "running",
        2,
    )
    assert exporter._process is not None
    exporter._process.wait(240)
    exporter.round()
    assert listed(context, tuned)["adapter"].status == "ready"

    with context.db.transaction() as session:
        exports.ask(session, project_id=tuned.project_id, model_id=model_id, form="merged")
    exporter.round()
    exporter.stop()
    export = listed(context, tuned)["merged"]
    assert (export.status, export.attempts) == ("queued", 0)
    _kill(exporter)
    _kill(exporter, start=False)
    export = listed(context, tuned)["merged"]
    assert export.status == "failed"
    assert "killed 2 times" in (export.reason or "")


def _kill(exporter: Exporter, *, start: bool = True) -> None:
    """Kill the exporter's process, after starting one, and let it look after that."""
    if start:
        exporter.round()
    assert exporter._process is not None
    os.killpg(exporter._process.pid, signal.SIGKILL)
    exporter._process.wait()
    exporter.round()

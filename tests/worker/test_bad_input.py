"""What can be wrong with a model or a checkpoint: the job fails at once, with a code and words that help."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from app.core.context import Context
from app.core.tables import Job
from tests.worker.conftest import MakeJob, rows
from tests.worker.test_runner import read, work

TEMPLATE = "chat_template.jinja"


def failed(context: Context, job: Job, code: str) -> str:
    """Return the message of a job that failed with this code, and not for another attempt to try again."""
    ended = read(context, job)
    assert (ended.status, ended.error_code) == ("failed", code), ended.error_message
    return ended.error_message or ""


def folder(context: Context) -> Path:
    """The base model's folder."""
    return context.settings.models / "tiny"


def test_a_damaged_checkpoint_is_refused(context: Context, create: MakeJob) -> None:
    """A byte changed in the recovery checkpoint: the run does not go on from it."""
    job = create(train=rows(12))
    work(context)
    work(context, stopping=lambda: True)
    work(context, stopping=lambda: True)
    uri = read(context, job).checkpoint_uri
    assert uri is not None
    weights = context.storage.path(uri) / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    work(context)
    message = failed(context, job, "checkpoint_refused")
    assert "optimizer.safetensors" in message
    assert "is not the file that was saved" in message


def test_a_changed_manifest_is_refused(context: Context, create: MakeJob) -> None:
    """It is JSON still, and says another rate: the run would no longer be the same."""
    job = create(train=rows(12))
    work(context)
    work(context, stopping=lambda: True)
    work(context, stopping=lambda: True)
    manifest = context.storage.path(read(context, job).checkpoint_uri or "") / "manifest.json"
    written = manifest.read_text()
    assert '"learning_rate_scale": 1.0' in written
    manifest.write_text(written.replace('"learning_rate_scale": 1.0', '"learning_rate_scale": 0.5'))
    work(context)
    assert "manifest.json" in failed(context, job, "checkpoint_refused")


def test_a_template_that_makes_no_text_names_the_row(context: Context, create: MakeJob) -> None:
    job = create(train=rows(12))
    (folder(context) / TEMPLATE).write_text("{{ '' }}")
    work(context)
    work(context)
    assert "Example 1 of the training file is empty" in failed(context, job, "invalid_training_file")


def test_a_model_without_a_chat_template_is_said_to_have_none(context: Context, create: MakeJob) -> None:
    """The cure is in the message."""
    job = create(train=rows(12))
    (folder(context) / TEMPLATE).unlink()
    work(context)
    work(context)
    message = failed(context, job, "unsupported_model")
    assert "tiny has no chat template" in message
    assert TEMPLATE in message


def test_a_template_that_refuses_a_row_names_the_row(context: Context, create: MakeJob) -> None:
    """Some models know no system turn and say so by raising."""
    turns: list[dict[str, Any]] = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    strange = json.dumps({"messages": turns, "letter": "a"}).encode() + b"\n"
    job = create(train=rows(12) + strange)
    refusal = "{{ raise_exception('System role not supported') }}"
    refusing = "{% if messages[0]['role'] == 'system' %}" + refusal + "{% endif %}"
    template = folder(context) / TEMPLATE
    template.write_text(refusing + template.read_text())
    work(context)
    work(context)
    message = failed(context, job, "invalid_training_file")
    assert "Example 13" in message
    assert "System role not supported" in message


def test_a_model_without_a_pad_token_trains(context: Context, create: MakeJob) -> None:
    """Nothing is ever padded with it."""
    job = create(train=rows(12))
    described = folder(context) / "tokenizer_config.json"
    settings = json.loads(described.read_text())
    del settings["pad_token"]
    described.write_text(json.dumps(settings))
    config = folder(context) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": None}))
    work(context)
    work(context)
    assert read(context, job).status == "succeeded"


def test_a_model_too_large_for_the_machine_fails_before_it_is_loaded(
    context: Context, create: MakeJob
) -> None:
    """With what it needs and what there is; nothing of a terabyte was read."""
    job = create(train=rows(12))
    shape = [1 << 19, 1 << 19]
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 << 38]}}).encode()
    with (folder(context) / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
    work(context)
    work(context)
    message = failed(context, job, "model_too_large")
    assert "tiny does not fit into memory" in message
    assert "weights 1099.5 GB" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_model_folder_is_a_plain_error(context: Context, create: MakeJob, name: str) -> None:
    """A file cut short is no reason to try again and again."""
    job = create(train=rows(12))
    path = folder(context) / name
    path.write_bytes(path.read_bytes()[:20])
    work(context)
    work(context)
    assert name in failed(context, job, "model_not_available")

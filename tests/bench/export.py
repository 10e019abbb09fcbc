"""The gate of exports on a real model: trained for a few steps, exported in every form, the table printed.

`python -m tests.bench.export [MODEL]` exits non-zero when a form is not offered. The gate itself is
`worker/export/parity.py`.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.core import migrate
from app.core.context import Context
from app.core.settings import Settings
from app.core.tables import Export, Job
from app.services import exports, jobs, leases, models, projects
from tests.factories import make_file
from worker import models as store
from worker.runner import Run
from worker.validation import validate

SAMPLE = Path(__file__).parents[2] / "examples" / "order-numbers"
GRADER: dict[str, Any] = {
    "type": "text_similarity",
    "name": "names the number",
    "input": "{{sample.output_text}}",
    "reference": "{{item.order_number}}",
    "evaluation_metric": "fuzzy_match",
}
# Few steps, but large ones: the adapter should move the model well away from its base.
NUMBERS = {
    "batch_size": 4,
    "samples_per_prompt": 4,
    "max_completion_tokens": 24,
    "n_epochs": 1,
    "learning_rate_multiplier": 5,
}
TRAIN_ROWS, TEST_ROWS = 16, 32


def main(model: str) -> int:
    """Print the table; return the exit code."""
    logging.getLogger("app.core.queue").setLevel(logging.ERROR)  # no broker runs here
    with tempfile.TemporaryDirectory() as folder:
        context = _context(Path(folder))
        started = time.monotonic()
        job = _trained(context, model)
        print(f"export: {job.model}, {job.total_steps} steps in {time.monotonic() - started:.0f} s")
        print("| form | weights | next token agrees | log-prob gap | texts | tokens | MB | s | |")
        print("|---|---|---|---|---|---|---|---|---|")
        rows = [_exported(context, job, form) for form in exports.FORMS]
        context.db.dispose()
    return int(any(row.status != "ready" for row in rows))


def _context(folder: Path) -> Context:
    settings = Settings(data=folder / "data")
    migrate.upgrade(settings)
    return Context.build(settings)


def _trained(context: Context, model: str) -> Job:
    found = {one.id: one for one in store.scan(context.settings)}
    if model not in found:
        raise SystemExit(f"There is no model {model} in {context.settings.models}: run `make model`.")
    details = {"parameters": found[model].parameters, "architecture": found[model].architecture}
    files = {"training_file": ("train.jsonl", TRAIN_ROWS), "test_file": ("test.jsonl", TEST_ROWS)}
    with context.db.transaction() as session:
        models.register_base_models(session, found={model: details})
        project = projects.default_project(session)
        ids = {}
        for key, (name, count) in files.items():
            lines = (SAMPLE / name).read_bytes().splitlines(keepends=True)[:count]
            ids[key] = make_file(session, project, context.storage, data=b"".join(lines), filename=name).id
        inner = {"grader": GRADER, "hyperparameters": NUMBERS}
        method = {"type": "reinforcement", "reinforcement": inner}
        body = {"model": model, "seed": 7, "suffix": "bench", "method": method} | ids
        job = jobs.create_job(session, settings=context.settings, project_id=project.id, body=body)
    while job.status not in ("succeeded", "failed"):
        with context.db.transaction() as session:
            lease = leases.claim(session, owner="bench", seconds=600, max_attempts=3)
        assert lease is not None
        if job.status == "validating_files":
            validate(context, lease)
        else:
            Run(context, lease, lambda: False).train()
        with context.db.reading() as session:
            job = session.get_one(Job, job.id)
    assert job.status == "succeeded", job.error_message
    return job


def _exported(context: Context, job: Job, form: str) -> Export:
    started = time.monotonic()
    with context.db.transaction() as session:
        model_id = job.fine_tuned_model or ""
        export = exports.ask(session, project_id=job.project_id, model_id=model_id, form=form)
        lease = exports.claim(session, seconds=600)
    assert lease is not None
    command = (sys.executable, "-m", "worker.export", lease.export_id, str(lease.token), str(os.getpid()))
    environment = os.environ | {"TUNESMITH_DATA": str(context.settings.root)}
    subprocess.run(command, env=environment, check=True)
    seconds = time.monotonic() - started
    with context.db.reading() as session:
        export = session.get_one(Export, export.id)
    print(_line(export, seconds))
    return export


def _line(export: Export, seconds: float) -> str:
    found = export.parity
    if found is None:
        return f"| {export.form} | | | | | | | {seconds:.0f} | {export.status}: {export.reason} |"
    texts = f"{found['same_texts']} of {found['prompts']}"
    if found["near_ties"]:
        texts += f", {found['near_ties']} part at a tie"
    return (
        f"| {export.form} | {found['dtype']} | {found['agreement']:.3%} of {found['positions']} "
        f"(≥ {found['required_agreement']:.1%}) | {found['gap']:.2g} (≤ {found['allowed_gap']:g}) | {texts} "
        f"| {found['same_tokens']} of {found['prompts']} | {(export.bytes or 0) / 1e6:.1f} | {seconds:.0f} "
        f"| {export.status}{': ' + export.reason if export.reason else ''} |"
    )


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or [store.DEFAULT_MODEL])))

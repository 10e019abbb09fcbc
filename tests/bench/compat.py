"""Calls every public method of OpenAI's Python client that touches what is served, and says which work.

`make compat` prints `COMPAT n/m` and writes docs/openai-compatibility.md; tests/clients/test_compat.py keeps
that page true. A method counts when it returns and its answer has the shape the client's types declare.
"""

import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import openai
from openai import OpenAI, Stream
from openai._resource import SyncAPIResource
from openai.lib.streaming.chat import ChatCompletionStreamManager
from openai.lib.streaming.responses import ResponseStreamManager
from pydantic import BaseModel, ValidationError

from tests.clients.stage import Stage, standing
from tests.factories import jsonl, question

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "openai-compatibility.md"
HEAD = Path(__file__).with_name("compat_head.md")
# The resources this service has; every other resource of the client is listed as missing.
SERVED = ("files", "uploads", "fine_tuning", "models", "chat", "responses", "webhooks")
# Methods of theirs that are not offered, and why: they stand on the page and count as not there.
DECLINED = {
    "responses.compact": "a conversation is never shortened on its own",
    "responses.connect": "there are no WebSockets",
}
GRADER = {
    "type": "string_check",
    "name": "says a",
    "input": "{{sample.output_text}}",
    "reference": "a",
    "operation": "like",
}
# Where OpenAI itself answers other than its client declares: null for a reinforcement job, two statuses, and
# stored messages, which are declared as a model's own.
AS_OPENAI_ANSWERS = (
    ("hyperparameters", None),
    ("status", "pausing"),
    ("status", "paused"),
    ("role", "user"),
)


class Said(BaseModel):
    """A form that ends by itself: the client refuses to parse what was cut off."""

    answer: Literal["a", "b"]


class _Nothing:
    """Stands for an answer that did not come, so that the methods after it are tried all the same."""

    def __getattr__(self, name: str) -> "_Nothing":
        return self

    def __getitem__(self, index: int) -> "_Nothing":
        return self

    def __str__(self) -> str:
        return "nothing"


@dataclass
class Tried:
    """One method: the request it made, and what is wrong with its answer, if anything."""

    route: str = "in the client"
    problem: str | None = None
    declined: str | None = None

    @property
    def works(self) -> bool:
        """True when the method does what it is for."""
        return self.problem is None and self.declined is None


@dataclass
class Trial:
    """The client under trial, and what was found so far, by the name of the method."""

    client: OpenAI
    found: dict[str, Tried] = field(default_factory=dict)
    request: str | None = None

    def call(self, name: str, /, *on: Any, **given: Any) -> Any:
        """Call one method by its dotted name, note how it went and return its answer."""
        self.request = None
        tried = Tried()
        answer: Any = _Nothing()
        try:
            # Two of the methods are deprecated, and still there.
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                answer = reduce(getattr, name.split("."), self.client)(*on, **given)
            tried.problem = shape_problem(answer)
            if isinstance(answer, ChatCompletionStreamManager | ResponseStreamManager):
                with answer as stream:
                    events = list(stream)
                if isinstance(answer, ChatCompletionStreamManager):
                    # The others are the client's own: what it has made of the chunks so far.
                    events = [event.chunk for event in events if event.type == "chunk"]
                tried.problem = next(filter(None, map(shape_problem, events)), None)
            elif isinstance(answer, Stream):
                tried.problem = next(filter(None, map(shape_problem, answer)), None)
        except openai.OpenAIError as error:
            tried.problem = f"{type(error).__name__}: {error}"
        tried.route = self.request or tried.route
        before = self.found.get(name)
        if before is None or before.problem is None:
            self.found[name] = tried
        return answer

    def note(self, request: Any) -> None:
        """Keep the route of a request as it leaves."""
        path = re.sub(
            r"(?<=/)(ft:|file-|ftjob-|upload_|cp_|we_|chatcmpl-|resp_|tiny)[^/]*", "{id}", request.url.path
        )
        self.request = f"{request.method} {path}"


def shape_problem(answer: Any) -> str | None:
    """Say how an answer differs from the type the client declares for it."""
    if not isinstance(answer, BaseModel):
        return None
    try:
        type(answer).model_validate(answer.to_dict(warnings=False))
    except ValidationError as error:
        # `parsed` is the client's own, of a type that the answer's type does not know.
        wrong = [
            one
            for one in error.errors()
            if one["loc"][-1] != "parsed" and (one["loc"][-1], one["input"]) not in AS_OPENAI_ANSWERS
        ]
        if wrong:
            return f"{'.'.join(map(str, wrong[0]['loc']))}: {wrong[0]['msg']}"
    return None


def methods(resource: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a resource's public methods, those below it included."""
    for name in dir(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        inner = getattr(resource, name)
        if isinstance(inner, SyncAPIResource):
            yield from methods(inner, f"{prefix}{name}.")
        elif callable(inner) and isinstance(resource, SyncAPIResource):
            yield f"{prefix}{name}"


def measure(stage: Stage) -> dict[str, Tried]:
    """Return how each method of the served resources went."""
    http = openai.DefaultHttpxClient()
    with OpenAI(
        base_url=stage.base_url, api_key=stage.service.key(), max_retries=0, http_client=http
    ) as client:
        trial = Trial(client)
        http.event_hooks = {"request": [trial.note]}
        file_id = _try_files(trial)
        _try_uploads(trial)
        _try_graders(trial)
        _try_jobs(trial, file_id, stage)
        _try_webhooks(trial, stage)
        public = [name for one in SERVED for name in methods(getattr(client, one), f"{one}.")]
    for name, why in DECLINED.items():
        trial.found[name] = Tried("", declined=why)
    return {name: trial.found.get(name, Tried("", "not tried")) for name in sorted(public)}


def _try_files(trial: Trial) -> str:
    data = jsonl(question(f"Question {n}", "a") for n in range(4))
    file = trial.call("files.create", file=("train.jsonl", data), purpose="fine-tune")
    trial.call("files.wait_for_processing", file.id)
    trial.call("files.retrieve", file.id)
    trial.call("files.list", limit=2)
    trial.call("files.content", file.id)
    trial.call("files.retrieve_content", file.id)
    spare = trial.client.files.create(file=("spare.jsonl", data), purpose="fine-tune")
    trial.call("files.delete", spare.id)
    return str(file.id)


def _try_uploads(trial: Trial) -> None:
    data = jsonl(question(f"Question {n}", "a") for n in range(4))
    about: dict[str, Any] = {"mime_type": "application/jsonl", "purpose": "fine-tune", "bytes": len(data)}
    upload = trial.call("uploads.create", filename="parts.jsonl", **about)
    parts = [trial.call("uploads.parts.create", upload.id, data=piece).id for piece in (data[:50], data[50:])]
    trial.call("uploads.complete", upload.id, part_ids=parts)
    trial.call("uploads.upload_file_chunked", file=data, filename="whole.jsonl", part_size=100, **about)
    trial.call("uploads.cancel", trial.client.uploads.create(filename="dropped.jsonl", **about).id)


def _try_graders(trial: Trial) -> None:
    trial.call("fine_tuning.alpha.graders.validate", grader=GRADER)
    trial.call("fine_tuning.alpha.graders.run", grader=GRADER, model_sample="a", item={"answer": "a"})


def _try_jobs(trial: Trial, file_id: str, stage: Stage) -> None:
    hyperparameters = {"eval_interval": 1, "samples_per_prompt": 2, "max_completion_tokens": 4}
    longer = hyperparameters | {"n_epochs": 50, "eval_interval": 1000}

    def create(**chosen: Any) -> Any:
        method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": chosen}}
        return trial.call("fine_tuning.jobs.create", model="tiny", training_file=file_id, method=method)

    job = create(**hyperparameters)
    _until(trial.client, job.id, "succeeded")
    done = trial.call("fine_tuning.jobs.retrieve", job.id)
    trial.call("fine_tuning.jobs.list", limit=2)
    trial.call("fine_tuning.jobs.list_events", job.id, limit=2)
    kept = trial.call("fine_tuning.jobs.checkpoints.list", job.id)
    long = create(**longer)
    _until(trial.client, long.id, "running")
    trial.call("fine_tuning.jobs.pause", long.id)
    _until(trial.client, long.id, "paused")
    trial.call("fine_tuning.jobs.resume", long.id)
    trial.call("fine_tuning.jobs.cancel", long.id)
    _try_models(trial, done.fine_tuned_model, kept.data[0].fine_tuned_model_checkpoint, stage)


def _try_models(trial: Trial, model: str, checkpoint: str, stage: Stage) -> None:
    permissions = "fine_tuning.checkpoints.permissions"
    shared = trial.call(f"{permissions}.create", checkpoint, project_ids=[stage.given["project"]])
    trial.call(f"{permissions}.list", checkpoint)
    trial.call(f"{permissions}.retrieve", checkpoint)
    trial.call(f"{permissions}.delete", shared.data[0].id, fine_tuned_model_checkpoint=checkpoint)
    trial.call("models.list")
    trial.call("models.retrieve", model)
    _try_chat(trial, model)
    _try_responses(trial, model)
    trial.call("models.delete", model)


def _try_chat(trial: Trial, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "2+2?"}]}
    asked["max_completion_tokens"] = 64
    form: dict[str, Any] = {"response_format": Said}
    trial.call("chat.completions.create", **asked, stream=True)
    made = trial.call("chat.completions.create", **asked, store=True, logprobs=True, top_logprobs=1)
    trial.call("chat.completions.parse", **asked, **form)
    trial.call("chat.completions.stream", **asked, **form)
    trial.call("chat.completions.list", limit=2)
    trial.call("chat.completions.retrieve", made.id)
    trial.call("chat.completions.messages.list", made.id)
    trial.call("chat.completions.update", made.id, metadata={"a": "b"})
    trial.call("chat.completions.delete", made.id)


def _try_responses(trial: Trial, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "input": "2+2?", "max_output_tokens": 16}
    trial.call("responses.create", **asked, stream=True)
    made = trial.call("responses.create", **asked)
    trial.call("responses.parse", **asked)
    trial.call("responses.stream", **asked)
    trial.call("responses.retrieve", made.id)
    trial.call("responses.input_items.list", made.id)
    trial.call("responses.input_tokens.count", model=model, input="2+2?")
    trial.call("responses.delete", made.id)
    later = trial.call("responses.create", **asked, background=True)
    trial.call("responses.cancel", later.id)


def _try_webhooks(trial: Trial, stage: Stage) -> None:
    trial.call("webhooks.event_types.list")
    types = ["fine_tuning.job.succeeded"]
    made = trial.call("webhooks.create", name="compat", url=stage.receiver.url, event_types=types)
    trial.call("webhooks.retrieve", made.id)
    trial.call("webhooks.list")
    trial.call("webhooks.update", made.id, name="renamed", url=stage.receiver.url, event_types=types)
    stage.receiver.received.clear()
    trial.call("webhooks.test", made.id, event_type=types[0])
    delivery = stage.receiver.received[-1]
    signed = {"secret": made.signing_secret}
    trial.call("webhooks.verify_signature", delivery.body, delivery.headers, **signed)
    trial.call("webhooks.unwrap", delivery.body, delivery.headers, **signed)
    trial.call("webhooks.rotate_secret", made.id)
    trial.call("webhooks.delete", made.id)


def _until(client: OpenAI, job_id: str, status: str) -> None:
    deadline = time.monotonic() + 300
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status != status:
        assert time.monotonic() < deadline, f"the job stands at {job.status}, not {status}"
        assert job.status != "failed", job.error
        time.sleep(0.1)


def score(found: dict[str, Tried]) -> str:
    """Return the line that is printed."""
    return f"COMPAT {sum(one.works for one in found.values())}/{len(found)}"


def page(found: dict[str, Tried]) -> str:
    """Return the compatibility page."""
    rows = [f"| `{name}` | {one.route} | {_verdict(one)} |" for name, one in found.items()]
    return HEAD.read_text(encoding="utf-8").format(
        version=openai.__version__, score=score(found), rows="\n".join(rows), missing=_missing()
    )


def _verdict(one: Tried) -> str:
    if one.declined is not None:
        return f"not offered: {one.declined}"
    return "works" if one.problem is None else f"missing: {one.problem}"


def _missing() -> str:
    lines = []
    with OpenAI(api_key="none", base_url="https://localhost/v1") as client:
        for name in dir(OpenAI):
            if not name.startswith(("_", "with_")) and name not in SERVED:
                inner = getattr(client, name)
                if isinstance(inner, SyncAPIResource):
                    lines.append(f"| `{name}` | {len(list(methods(inner)))} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print the line, write the page; 1 if anything that should work does not."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-compat-") as folder, standing(Path(folder)) as stage:
        found = measure(stage)
    PAGE.write_text(page(found), encoding="utf-8")
    for name, one in found.items():
        print(f"{'ok  ' if one.problem is None else 'MISS'} {name:45} {one.route}  {one.problem or ''}")
    print(score(found))
    return 0 if all(one.problem is None for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

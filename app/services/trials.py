"""A trial: a grader run on answers before it costs a training run.

Gathers the rows and the answers (given, or a job's stored rollouts) and grades them with their probes; what
comes of it is summed up in `trial_report`. No transaction is open while it grades. Called by api and
dashboard.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.core.refusals import invalid
from app.core.response_format import schema_of
from app.core.storage import Storage
from app.graders import template
from app.graders.grade import grade
from app.graders.means import Means
from app.graders.probes import probes_of
from app.graders.result import Grade, GradeErrors, infrastructure_fault
from app.graders.spec import Grader
from app.services import datasets, files, jobs, rollouts
from app.services.dataset_rows import BadLine, Row
from app.services.trial_report import Answer, Graded, Probed

MOST_ANSWERS = 200
PROBED_ROWS = 3
THREADS = 8
# A web thread waits for all of it.
MOST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class JobAnswers:
    """Which stored rollouts of a job to grade again; every step from the first where none is named."""

    job_id: str
    step: int | None = None
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a trial runs on. Rows come from a job, a file, or `items`; answers from a job, a list, or both.

    `answers` are (row, text). `reference` is a template that gives a row's right answer, for the probes.
    Where no answer names a row, the first `rows` of them are read.
    """

    file_id: str | None = None
    items: Sequence[Mapping[str, Any]] | None = None
    answers: Sequence[tuple[int, str]] = ()
    job: JobAnswers | None = None
    reference: str | None = None
    json_expected: bool = False
    probes: bool = True
    rows: int = PROBED_ROWS


@dataclass(frozen=True, slots=True)
class Trial:
    """Rows by index as (item, prompt), and the answers to them."""

    rows: Mapping[int, tuple[Mapping[str, Any], str]]
    answers: Sequence[Answer]
    reference: str | None
    json_expected: bool
    probes: bool = field(default=True)


def gather(session: Session, *, storage: Storage, project_id: str, asked: Asked) -> Trial:
    """Read what a trial runs on. Raises: NotFound, InvalidRequest naming the parameter."""
    if asked.reference is not None:
        _check_reference(asked.reference)
    texts, file_id, json_expected = list(asked.answers), asked.file_id, asked.json_expected
    if asked.job is not None:
        job = jobs.get_job(session, project_id=project_id, job_id=asked.job.job_id)
        split = asked.job.split
        # Without a validation file its rows are held out of the training file, and keep their index.
        named = {"valid": job.validation_file, "test": job.test_file}.get(split)
        file_id = named or job.training_file
        json_expected = schema_of(job.method["reinforcement"]["response_format"]) is not None
        page = rollouts.list_rollouts(
            session, storage=storage, job_id=job.id, step=asked.job.step, split=split, limit=MOST_ANSWERS
        )
        texts += [(row["item_index"], row["completion"]) for row in page.rows]
    if len(texts) > MOST_ANSWERS:
        raise invalid(f"a trial grades at most {MOST_ANSWERS} answers", "answers")
    wanted = {index for index, _ in texts} or set(range(asked.rows))
    rows: dict[int, tuple[Mapping[str, Any], str]]
    if file_id is not None:
        found = _file_rows(session, storage, project_id, file_id, wanted)
        rows = {index: (row.item, str(row.messages[-1]["content"])) for index, row in found.items()}
    else:
        rows = {index: (item, "") for index, item in enumerate(asked.items or [{}])}
    for place, (index, _) in enumerate(texts):
        if index not in rows:
            raise invalid(f"there is no row {index}", f"answers[{place}].item_index")
    answers = [Answer(index, text, rows[index][0]) for index, text in texts]
    return Trial(rows, answers, asked.reference, json_expected, asked.probes)


def run(grader: Grader, trial: Trial, means: Means, *, seconds: float = MOST_SECONDS) -> dict[str, Any]:
    """Grade every answer and probe and return the report; what has not begun after `seconds` is left out."""
    ends = time.monotonic() + seconds
    items = [item for item, _ in trial.rows.values()]
    probes = [
        (index, item, probe)
        for index, (item, prompt) in list(trial.rows.items())[: PROBED_ROWS if trial.probes else 0]
        for probe in probes_of(grader, item, prompt, trial.reference, items)
    ]
    work = [(answer.item, answer.text) for answer in trial.answers]
    work += [(item, probe.text) for _, item, probe in probes]

    def one(case: tuple[Mapping[str, Any], str]) -> Grade:
        item, text = case
        if time.monotonic() >= ends:
            return infrastructure_fault("The trial's time was over.", GradeErrors(other_error=True))
        return grade(grader, item=item, output_text=text, json_expected=trial.json_expected, means=means)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="trial") as pool:
        grades = list(pool.map(one, work))
    answered, probed = grades[: len(trial.answers)], grades[len(trial.answers) :]
    return Graded(
        answers=list(zip(trial.answers, answered, strict=True)),
        probes=[Probed(index, probe, done) for (index, _, probe), done in zip(probes, probed, strict=True)],
    ).report()


def _check_reference(text: str) -> None:
    try:
        variables = template.parse(text).variables
    except template.TemplateError as problem:
        raise invalid(str(problem), "reference") from None
    if any(variable.namespace == "sample" for variable in variables):
        raise invalid("the right answer can't depend on the sample", "reference")


def _file_rows(
    session: Session, storage: Storage, project_id: str, file_id: str, wanted: Iterable[int]
) -> dict[int, Row]:
    file = files.get_file(session, project_id=project_id, file_id=file_id)
    found: dict[int, Row] = {}
    left = set(wanted)
    try:
        for row in datasets.read_rows(storage.path(files.file_uri(file))):
            if row.index in left:
                found[row.index] = row
                left.discard(row.index)
            if not left:
                break
    except BadLine as problem:
        raise invalid(f"the file has a line that can't be read. {str(problem).rstrip('.')}", "file") from None
    except FileNotFoundError:
        raise invalid("its bytes are missing from storage", "file") from None
    return found

"""What a job's grader needs beside the answers: judges, endpoints, the sandbox of its Python parts.

Opened before the model is loaded, so that a job whose grader cannot run here fails in seconds, and closed
when the run ends, however it ends. Called by the runner.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from app.core.engines import Served
from app.core.settings import Settings
from app.graders.kinds import Python
from app.graders.means import Means
from app.graders.python import PythonGraders
from app.graders.sandbox.level import SandboxUnavailable
from app.graders.sandbox.process import ZygoteError
from app.graders.spec import Grader, leaves
from app.services import graders
from worker.plan import PlanError

PARAM = "method.reinforcement.grader"


@dataclass(frozen=True, slots=True)
class Equipment:
    """The means to grade with, and what the job's reader should know about them, with a level each."""

    means: Means
    notes: tuple[tuple[str, str], ...] = ()


@contextmanager
def equipped(settings: Settings, grader: Grader, *, served: Mapping[str, Served]) -> Iterator[Equipment]:
    """Yield what a job's grader needs; `served` are the models of this house among its judges.

    Raises: Unavailable where this machine cannot run it, PlanError where it is no grader at all.
    """
    with graders.means(settings, grader, concurrency=settings.grader_concurrency, served=served) as means:
        notes = _looked_at(grader, means.python) if means.python is not None else ()
        yield Equipment(means, notes)


def _looked_at(grader: Grader, python: PythonGraders) -> tuple[tuple[str, str], ...]:
    notes = [("info", f"Python graders run in the sandbox, {python.sandbox.description}.")]
    for key, leaf in leaves(grader).items():
        if not isinstance(leaf, Python):
            continue
        place = PARAM if key is None else f"{PARAM}.graders.{key}"
        try:
            problem, missing = python.check(leaf.source), python.missing(leaf.source)
        except ZygoteError as dead:
            raise SandboxUnavailable(f"The sandbox does not start: {dead}.") from dead
        if problem is not None:
            raise PlanError("invalid_grader", f"The grader '{leaf.name}': {problem}", f"{place}.source")
        if missing:
            what = f"The grader '{leaf.name}' imports {', '.join(missing)}, which graders here do not have."
            notes.append(("warn", f"{what} See 'Packages for graders' in docs/operations.md."))
    return tuple(notes)

"""Whether a grader can be run here, and what it is run with.

Graders that have a name and versions stand in `saved_graders`, trying one out in `trials`; grading itself is
`app.graders`. Called by jobs, api, dashboard and the trainer.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

from app.core import outbound
from app.core.context import Context
from app.core.engines import Served
from app.core.errors import InvalidRequest, Unavailable
from app.core.providers import ANY_MODEL, FILE, Providers, ProvidersError
from app.core.refusals import invalid, listed
from app.core.settings import Settings
from app.graders.endpoint import Endpoints
from app.graders.judge import Judges
from app.graders.kinds import Endpoint, LabelModel, Python, ScoreModel
from app.graders.means import Means
from app.graders.python import PythonGraders
from app.graders.sandbox.level import SandboxUnavailable
from app.graders.sandbox.process import ZygoteError
from app.graders.spec import MOST_SOURCE_BYTES, Grader, leaves, parse_grader
from app.services import inference

NOBODY: Mapping[str, Served] = {}


def checked(
    content: object,
    *,
    settings: Settings,
    param: str,
    sources: bool = True,
    served: Mapping[str, Served] = NOBODY,
) -> Grader:
    """Return a grader that can be parsed and, as `check_means` has it, run here.

    Raises: InvalidRequest, Unavailable.
    """
    grader = parse_grader(content, param=param, for_training=False)
    check_means(grader, settings=settings, param=param, sources=sources, served=served)
    return grader


def checked_here(
    context: Context, content: object, *, project_id: str, param: str, sources: bool = True
) -> Grader:
    """Return a grader that the project can run, with its own models as judges. Raises: as `checked`."""
    grader = parse_grader(content, param=param, for_training=False)
    served = inference.own_judges(context, project_id=project_id, grader=grader)
    check_means(grader, settings=context.settings, param=param, sources=sources, served=served)
    return grader


@contextmanager
def means_here(context: Context, grader: Grader, *, project_id: str, concurrency: int = 1) -> Iterator[Means]:
    """Yield what a project's grader is run with, its own models as judges among it. Raises: as `means`."""
    served = inference.own_judges(context, project_id=project_id, grader=grader)
    with means(context.settings, grader, concurrency=concurrency, served=served) as found:
        yield found


def check_means(
    grader: Grader,
    *,
    settings: Settings,
    param: str,
    sources: bool = True,
    served: Mapping[str, Served] = NOBODY,
) -> None:
    """Refuse a grader whose judge nobody runs, whose endpoint may not be reached, whose source is none.

    Without `sources` Python is not looked at: where a grader is run at once, its faults are in its grades.
    `served` are the models of this house that may judge, as `inference.judges` finds them.
    Raises: InvalidRequest naming the key, Unavailable when the operator's file is broken.
    """
    for key, leaf in leaves(grader).items():
        place = param if key is None else f"{param}.graders.{key}"
        if isinstance(leaf, ScoreModel | LabelModel):
            _check_judge(leaf.model, settings, f"{place}.model", served)
        if isinstance(leaf, Python) and sources:
            _check_source(leaf.source, settings, f"{place}.source")
        if isinstance(leaf, Endpoint):
            try:
                outbound.check_url(leaf.url, allow=settings.listed(settings.webhook_allow))
            except InvalidRequest as problem:
                raise InvalidRequest(problem.message, param=f"{place}.url", code="invalid_value") from None


def check_sources(content: object, *, settings: Settings, param: str) -> None:
    """Refuse broken Python in a grader as it was sent; whatever else is wrong with it is left to others.

    Raises: InvalidRequest naming the source and the line.
    """
    if not isinstance(content, Mapping):
        return
    if isinstance(content.get("graders"), Mapping):
        for key, part in content["graders"].items():
            check_sources(part, settings=settings, param=f"{param}.graders.{key}")
    source = content.get("source")
    if content.get("type") == "python" and isinstance(source, str) and len(source) <= MOST_SOURCE_BYTES:
        _check_source(source, settings, f"{param}.source")


@contextmanager
def means(
    settings: Settings,
    grader: Grader,
    *,
    concurrency: int = 1,
    served: Mapping[str, Served] = NOBODY,
) -> Iterator[Means]:
    """Yield what a grader is run with, and close it at the end of the block.

    Raises: Unavailable; its child SandboxUnavailable where no Python grader can run.
    """
    runs_python = any(isinstance(leaf, Python) for leaf in leaves(grader).values())
    with ExitStack() as stack:
        python = None
        if runs_python:
            python = stack.enter_context(PythonGraders.open(settings, concurrency=concurrency))
        try:
            judges = stack.enter_context(closing(Judges.of(settings.root, served=served)))
        except ProvidersError as problem:
            raise Unavailable(str(problem), code="providers_unreadable") from None
        endpoints = Endpoints(settings.listed(settings.webhook_allow))
        yield Means(judges=judges, endpoints=endpoints, python=python)


def _check_source(source: str, settings: Settings, param: str) -> None:
    try:
        with PythonGraders.open(settings) as python:
            problem = python.check(source)
    except (SandboxUnavailable, ZygoteError):
        return  # the worker's machine may have what this one lacks; it will say so if not
    if problem is not None:
        raise invalid(problem, param)


def _check_judge(model: str, settings: Settings, param: str, served: Mapping[str, Served]) -> None:
    try:
        providers = Providers.read(settings.root)
    except ProvidersError as problem:
        raise Unavailable(str(problem), code="providers_unreadable") from None
    if model not in served and providers.route(model) is None:
        known = f"there are {listed(providers.models)}" if providers.models else "there is none yet"
        raise InvalidRequest(
            f"The model '{model[:100]}' is not available as a judge here; {known}. Models that are served "
            f"here may judge, and the operator names further ones in {FILE} in the data folder; the name "
            f"'{ANY_MODEL}' there stands for every other one.",
            param=param,
            code="model_not_available",
        )

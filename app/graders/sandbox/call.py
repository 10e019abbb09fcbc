"""One call of a user's `grade(sample, item)`, from the request's bytes to the answer's.

Runs inside the sandbox, in a child made for this call alone and locked down before. Everything here may be
turned inside out by the user's source, which gains it nothing: the host trusts no byte of the answer.
"""

import inspect
import json
import linecache
import sys
import traceback
from types import CodeType, ModuleType, TracebackType
from typing import Any

from app.graders.sandbox.source import NO_GRADE, wrong_arguments

FILE = "grader.py"
_FRAMES = 20
_CHARACTERS = 1600


def compiled(source: str) -> CodeType:
    """Return the source as code. Raises: whatever compile does with it."""
    return compile(source, FILE, "exec", dont_inherit=True)


def answer(code: CodeType, source: str, request: bytes) -> bytes:
    """Return the answer to one request: a reward, what came instead of one, or the user's own traceback."""
    # A traceback shows the line itself only where it can look it up.
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    dumps = json.dumps
    try:
        value = _graded(code, request)
    except _Refused as refused:
        return dumps({"error": str(refused)}).encode()
    except BaseException as problem:  # boundary: the user's code may raise anything at all
        return dumps({"error": described(problem)}).encode()
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return dumps({"reward": float(value)}).encode()
        except OverflowError:
            return dumps({"error": "grade returned an integer too large to be a reward"}).encode()
    return dumps({"error": f"grade returned {_shown(value)}, not a number"}).encode()


def described(problem: BaseException) -> str:
    """Return the traceback as the user would see it: from their first line on, its end if it is long."""
    try:
        own = _from_users_code(problem.__traceback__)
        lines = traceback.TracebackException(type(problem), problem, own, limit=-_FRAMES).format()
        text = "".join(lines).strip()
    except BaseException:  # boundary: an exception may refuse to be printed
        text = f"{type(problem).__name__} (it cannot be shown)"
    return text if len(text) <= _CHARACTERS else "…" + text[-_CHARACTERS:]


class _Refused(Exception):
    """The source is not a grader; the message says what it lacks."""


def _graded(code: CodeType, request: bytes) -> Any:
    module = ModuleType("grader")
    module.__file__ = FILE
    sys.modules["grader"] = module
    exec(code, module.__dict__)  # noqa: S102 - this is what the sandbox is for
    grade = module.__dict__.get("grade")
    if not callable(grade):
        raise _Refused(NO_GRADE)
    sample, item = json.loads(request)
    try:
        return grade(sample, item)
    except TypeError as problem:
        # Raised by the call itself, not inside it: the arguments do not fit, perhaps.
        if problem.__traceback__ is not None and problem.__traceback__.tb_next is None:
            _check_arguments(grade)
        raise


def _check_arguments(grade: Any) -> None:
    try:
        signature = inspect.signature(grade)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise _Refused(wrong_arguments(str(signature))) from None


def _from_users_code(trace: TracebackType | None) -> TracebackType | None:
    place = trace
    while place is not None and place.tb_frame.f_code.co_filename != FILE:
        place = place.tb_next
    return place


def _shown(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, str):
        return f"a {kind} ({value[:80]!r})"
    if isinstance(value, bool):
        return f"the bool {value}"
    return "None" if value is None else f"a value of type {kind}"

"""How a malformed request is refused: OpenAI's wording, `param` path and code for each kind of mistake.

One sentence per kind of mistake, whichever part of the program finds it.

Source: the error messages of OpenAI's API, e.g. `Unknown parameter: 'x'.`
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from app.core.errors import InvalidRequest


def unknown(param: str) -> InvalidRequest:
    """Return the refusal of a key that is neither OpenAI's nor ours."""
    return InvalidRequest(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")


def refuse_unknown(value: Mapping[str, object], known: Collection[str], prefix: str = "") -> None:
    """Raise for the first key of `value` that is not `known`."""
    for key in value:
        if key not in known:
            raise unknown(f"{prefix}{key}")


def missing(param: str) -> InvalidRequest:
    """Return the refusal of a request without a required key."""
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def wrong_type(expected: str, given: object, param: str) -> InvalidRequest:
    """Return the refusal of a value of another JSON type."""
    message = f"Invalid type for '{param}': expected {expected}, but got {kind_of(given)} instead."
    return InvalidRequest(message, param=param, code="invalid_type")


def wrong_value(given: str, allowed: Iterable[str], param: str) -> InvalidRequest:
    """Return the refusal of a word that is not one of the allowed ones."""
    message = f"Invalid value: '{given[:100]}'. Supported values are: {listed(allowed)}."
    return InvalidRequest(message, param=param, code="invalid_value")


def unsupported(message: str, param: str) -> InvalidRequest:
    """Return the refusal of what OpenAI knows and this server does not offer."""
    return InvalidRequest(f"Unsupported value: {message}", param=param, code="unsupported_value")


def invalid(message: str, param: str) -> InvalidRequest:
    """Return the refusal of a value that is well-typed and still wrong."""
    return InvalidRequest(f"Invalid '{param}': {message}.", param=param, code="invalid_value")


def listed(values: Iterable[str]) -> str:
    """Return `'a', 'b', and 'c'`."""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def joined(param: str, steps: Sequence[str | int]) -> str:
    """Return `param` with further steps: `grader` and `("graders", "a", 0)` give `grader.graders.a[0]`."""
    return param + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def kind_of(value: object) -> str:
    """Return the JSON type of a value, with its article."""
    if value is None:
        return "null"
    names: tuple[tuple[type, str], ...] = (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a decimal"),
        (str, "a string"),
        (list, "an array"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "an object")

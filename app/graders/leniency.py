"""The ways users write a grader that OpenAI also takes, brought into the one form `spec` knows.

Missing names, `neq`, `pass_threshold`, `multi.graders` as a list or as one grader. Kinds that are known but
not offered are refused here, before their other keys are looked at. Only `spec.parse_grader` calls this.
"""

from typing import Any

from app.core import refusals
from app.core.errors import InvalidRequest

KINDS = ("string_check", "text_similarity", "multi")
KNOWN_ELSEWHERE = ("score_model", "label_model", "python", "endpoint", "saved")


def normalised(value: object, *, param: str, key: str | None = None) -> dict[str, Any]:
    """Return a grader in its plain form; `key` is its key in a multi grader, the default of its name.

    Raises: InvalidRequest.
    """
    if not isinstance(value, dict):
        raise refusals.wrong_type("an object", value, param)
    grader = {name: content for name, content in value.items() if name != "pass_threshold"}
    kind = _kind(grader, param, nested=key is not None)
    if grader.get("name") in (None, ""):
        grader["name"] = key or kind
    if kind == "string_check" and grader.get("operation") == "neq":
        grader["operation"] = "ne"
    if kind == "text_similarity" and grader.get("evaluation_metric") == "cosine":
        raise refusals.unsupported(
            "'cosine' needs an embedding model and exists for evals only, not for reinforcement fine-tuning.",
            f"{param}.evaluation_metric",
        )
    if kind == "multi" and "graders" in grader:
        grader["graders"] = _parts(grader["graders"], f"{param}.graders")
    return grader


def _kind(grader: dict[str, Any], param: str, *, nested: bool) -> str:
    param = f"{param}.type"
    if "type" not in grader:
        raise refusals.missing(param)
    kind = grader["type"]
    if not isinstance(kind, str):
        raise refusals.wrong_type("a string", kind, param)
    available = [name for name in KINDS if not (nested and name == "multi")]
    if kind in KNOWN_ELSEWHERE:
        message = f"'{kind}' graders are not available on this server. Available kinds are: "
        raise refusals.unsupported(f"{message}{refusals.listed(available)}.", param)
    if nested and kind == "multi":
        raise refusals.invalid("a multi grader cannot hold another multi grader", param)
    if kind not in KINDS:
        raise refusals.wrong_value(kind, available, param)
    return kind


def _parts(value: object, param: str) -> dict[str, Any]:
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = [value]  # The SDK's own type says that `graders` is a single grader.
    if isinstance(value, list):
        value = _keyed_by_name(value, param)
    if not isinstance(value, dict):
        raise refusals.wrong_type("an object", value, param)
    if not value:
        raise refusals.invalid("a multi grader needs at least one grader", param)
    for key in value:
        if not str(key).isidentifier():
            raise _bad_key(str(key), param)
    return {key: normalised(part, param=f"{param}.{key}", key=key) for key, part in value.items()}


def _keyed_by_name(graders: list[Any], param: str) -> dict[str, Any]:
    keyed: dict[str, Any] = {}
    for index, grader in enumerate(graders):
        place = f"{param}[{index}]"
        if not isinstance(grader, dict):
            raise refusals.wrong_type("an object", grader, place)
        name = grader.get("name")
        if name is None:
            raise refusals.missing(f"{place}.name")
        if not isinstance(name, str):
            raise refusals.wrong_type("a string", name, f"{place}.name")
        if name in keyed:
            raise refusals.invalid(f"two graders are called '{name}'", f"{place}.name")
        keyed[name] = grader
    return keyed


def _bad_key(key: str, param: str) -> InvalidRequest:
    return refusals.invalid(
        f"'{key[:100]}' cannot stand in `calculate_output`; a key is letters, digits and underscores, "
        "and begins with no digit",
        param,
    )

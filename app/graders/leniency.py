"""The ways users write a grader that OpenAI also takes, brought into the one form `spec` knows.

Missing names, `neq`, `pass_threshold`, `multi.graders` as a list or as one grader, every form of a message's
content. An unknown kind is refused here, before its other keys are looked at. Only `spec.parse_grader` calls
this.
"""

from typing import Any

from app.core import refusals
from app.core.errors import InvalidRequest

KINDS = ("string_check", "text_similarity", "score_model", "label_model", "python", "endpoint", "multi")

_CONTENT_TYPES = ("input_text", "output_text", "input_image", "input_audio")
# OpenAI's reference spells it `max_completions_tokens`; its users often don't.
_SPELLINGS = {"max_completion_tokens": "max_completions_tokens", "max_tokens": "max_completions_tokens"}


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
    if kind in ("score_model", "label_model"):
        _smooth_judge(grader, param)
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
    if kind == "saved":
        raise refusals.invalid(
            "a saved grader can stand only where there is a project to look it up in", param
        )
    available = [name for name in KINDS if not (nested and name == "multi")]
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


def _smooth_judge(grader: dict[str, Any], param: str) -> None:
    if isinstance(grader.get("input"), list):
        grader["input"] = [
            _message(message, f"{param}.input[{index}]") for index, message in enumerate(grader["input"])
        ]
    sampling = grader.get("sampling_params")
    if isinstance(sampling, dict):
        grader["sampling_params"] = {_SPELLINGS.get(name, name): value for name, value in sampling.items()}


def _message(message: object, param: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise refusals.wrong_type("an object", message, param)
    content, param = message.get("content"), f"{param}.content"
    if "content" not in message:
        raise refusals.missing(param)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, str | list):
        raise refusals.wrong_type("a string or an array", content, param)
    if isinstance(content, list):
        content = [_content_part(part, f"{param}[{index}]") for index, part in enumerate(content)]
    return {**message, "content": content}


def _content_part(part: object, param: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    if not isinstance(part, dict):
        raise refusals.wrong_type("an object", part, param)
    kind = part.get("type")
    if kind is None:
        raise refusals.missing(f"{param}.type")
    if not isinstance(kind, str):
        raise refusals.wrong_type("a string", kind, f"{param}.type")
    if kind == "text":  # Chat Completions' own word for it
        return {**part, "type": "input_text"}
    if kind not in _CONTENT_TYPES:
        raise refusals.wrong_value(kind, _CONTENT_TYPES, f"{param}.type")
    if part.get("file_id") is not None:
        raise refusals.unsupported("a picture is given by 'image_url' here.", f"{param}.file_id")
    return {name: value for name, value in part.items() if name != "file_id"}


def _bad_key(key: str, param: str) -> InvalidRequest:
    return refusals.invalid(
        f"'{key[:100]}' cannot stand in `calculate_output`; a key is letters, digits and underscores, "
        "and begins with no digit",
        param,
    )

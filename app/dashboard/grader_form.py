"""The lab's form and the grader it stands for: each type's fields, both ways.

What a form cannot hold is edited as JSON, never lost: a saved grader is shown in its type's form only if the
form would give the same grader back. Called by the lab; what a grader may say is judged in services.
"""

import json
from collections.abc import Mapping
from typing import Any, get_args

from app.core.errors import AppError
from app.dashboard.grader_contexts import LabField
from app.graders.checks import Operation
from app.graders.json_text import NotJson, read_json
from app.graders.similarity import Metric

JSON = "json"
TYPES = {
    "python": "Python",
    "string_check": "String check",
    "text_similarity": "Text similarity",
    "score_model": "Score model",
    "label_model": "Label model",
    "multi": "Multi",
    "endpoint": "Endpoint",
    JSON: "JSON",
}
_WHOLE = "{{sample.output_text}}"
_OPERATIONS = {
    "eq": "eq: equal",
    "ne": "ne: not equal",
    "like": "like: the answer contains the reference",
    "ilike": "ilike: contains it, whatever the case",
}
_INPUT = LabField("input", "Input", "template", "What is looked at: the answer, or a field of it.")
_REFERENCE = LabField("reference", "Reference", "template", "What it is compared with: a key of the row.")
_JUDGE = (
    LabField(
        "model",
        "Judge model",
        "model",
        "A model served here, or a name of providers.toml.",
    ),
    LabField("instructions", "Instructions", "text", "What the judge is told first. Empty: no such message."),
    LabField("prompt", "What is judged", "text", "Fenced off from the instructions, whatever it says."),
    LabField(
        "messages", "Messages, as JSON", "more", "In place of the two above, where they can't hold them."
    ),
)
FIELDS: dict[str, tuple[LabField, ...]] = {
    "python": (
        LabField("source", "Source", "source", "grade(sample, item) returns a number, best from 0 to 1."),
    ),
    "string_check": (
        _INPUT,
        LabField(
            "operation",
            "Operation",
            "choice",
            "",
            tuple((name, _OPERATIONS[name]) for name in get_args(Operation)),
        ),
        _REFERENCE,
    ),
    "text_similarity": (
        _INPUT,
        LabField(
            "evaluation_metric", "Metric", "choice", "", tuple((name, name) for name in get_args(Metric))
        ),
        _REFERENCE,
    ),
    "score_model": (
        *_JUDGE,
        LabField("low", "Lowest score", "number", "Empty: 0."),
        LabField("high", "Highest score", "number", "Empty: 1. What goes beyond is brought back."),
    ),
    "label_model": (
        *_JUDGE,
        LabField("labels", "Labels", "text", "One a line: the judge must choose one of them."),
        LabField("passing_labels", "Passing labels", "text", "One a line: these score 1, the others 0."),
    ),
    "multi": (
        LabField("graders", "Graders, as JSON", "json", "A grader under each name the formula uses."),
        LabField(
            "calculate_output",
            "Formula",
            "template",
            "Names, numbers, + - * / ^ and min max abs floor ceil exp sqrt log.",
        ),
    ),
    "endpoint": (
        LabField("url", "Address", "line", 'Asked with {"sample", "item"}, it answers {"score": number}.'),
        LabField("rate_limit", "Requests a minute", "number", "Empty: as fast as answers come."),
    ),
    JSON: (LabField("whole", "Grader, as JSON", "json", "OpenAI’s own graders can be pasted as they are."),),
}
MORE = LabField("more", "Other keys, as JSON", "more", "Such as sampling_params, or an endpoint’s headers.")
KEYS = ("name", "inner", *dict.fromkeys(field.name for fields in FIELDS.values() for field in fields), "more")
_PLACES = {"range": "low", "input": "prompt"}
_PYTHON = '''def grade(sample, item):
    """Return a reward from 0 to 1 for one answer to one row."""
    answer = sample["output_text"].strip()
    return 1.0 if answer == item["answer"] else 0.0
'''
_PARTS = {
    "exact": {
        "type": "string_check",
        "name": "exact",
        "operation": "eq",
        "input": _WHOLE,
        "reference": "{{item.answer}}",
    },
    "close": {
        "type": "text_similarity",
        "name": "close",
        "evaluation_metric": "fuzzy_match",
        "input": _WHOLE,
        "reference": "{{item.answer}}",
    },
}
_FIRST: dict[str, dict[str, str]] = {
    "python": {"source": _PYTHON},
    "string_check": {"input": _WHOLE, "operation": "eq", "reference": "{{item.answer}}"},
    "text_similarity": {"input": _WHOLE, "evaluation_metric": "fuzzy_match", "reference": "{{item.answer}}"},
    "score_model": {
        "instructions": "Score the answer from 0 to 1. 1: correct and complete. 0: wrong.",
        "prompt": "Right answer: {{item.answer}}\nAnswer to score: {{sample.output_text}}",
    },
    "label_model": {
        "instructions": "Say whether the answer means the same as the right one.",
        "prompt": "Right answer: {{item.answer}}\nAnswer to judge: {{sample.output_text}}",
        "labels": "same\ndifferent",
        "passing_labels": "same",
    },
    "multi": {
        "graders": json.dumps(_PARTS, indent=2),
        "calculate_output": "0.8 * exact + 0.2 * close",
    },
    "endpoint": {"url": "https://"},
    JSON: {"whole": ""},
}


class Refused(Exception):
    """A field that cannot even be put into a grader."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def first(kind: str) -> dict[str, str]:
    """Return what a fresh form of a type holds."""
    return dict.fromkeys(KEYS, "") | _FIRST[kind]


def content_of(kind: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the grader a form stands for. Raises: Refused for text that is no JSON."""
    # A grader's own name is part of its content: renaming what was saved makes no new version.
    name = (values["inner"] or values["name"]).strip()
    if kind == JSON:
        whole = _json(values, "whole")
        if not isinstance(whole, dict):
            raise Refused("whole", "This must be a JSON object, one grader.")
        return ({"name": name} if name else {}) | whole
    more = _json(values, "more")
    more = {} if more is None else more
    if not isinstance(more, dict):
        raise Refused("more", "This must be a JSON object.")
    content: dict[str, Any] = {"type": kind} | ({"name": name} if name else {})
    if kind in ("score_model", "label_model"):
        content |= {"model": values["model"].strip(), "input": _messages(values)}
    if kind == "score_model" and (values["low"].strip() or values["high"].strip()):
        content["range"] = [_number(values["low"] or "0"), _number(values["high"] or "1")]
    if kind == "label_model":
        content |= {key: _lines(values[key]) for key in ("labels", "passing_labels")}
    if kind == "multi":
        content |= {"graders": _json(values, "graders"), "calculate_output": values["calculate_output"]}
    if kind == "endpoint":
        content["url"] = values["url"].strip()
        if values["rate_limit"].strip():
            content["rate_limit"] = _number(values["rate_limit"])
    if kind in ("python", "string_check", "text_similarity"):
        content |= {field.name: plain(values[field.name]) for field in FIELDS[kind]}
    return content | more


def values_of(content: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return a saved grader's form: its type, or JSON where its fields can't hold it, and the fields."""
    kind = str(content["type"])
    values = dict.fromkeys(KEYS, "") | {"inner": str(content["name"])}
    left = {key: value for key, value in content.items() if key not in ("type", "name")}
    if kind in ("score_model", "label_model"):
        values |= _said(left.pop("input"))
    if kind == "score_model" and "range" in left:
        values["low"], values["high"] = (f"{end:g}" for end in left.pop("range"))
    for field in FIELDS[kind]:
        if field.name in left:
            value = left.pop(field.name)
            is_list = isinstance(value, list)
            values[field.name] = "\n".join(value) if is_list else _text(value)
    values["more"] = _text(left) if left else ""
    try:
        is_whole = content_of(kind, values) == content
    except Refused:
        is_whole = False
    if is_whole:
        return kind, values
    return JSON, dict.fromkeys(KEYS, "") | {"inner": str(content["name"]), "whole": _text(dict(content))}


def field_of(kind: str, error: AppError) -> str:
    """Return the form's field that an error's param names."""
    param = error.param or ""
    key = "" if param == "grader" else param.removeprefix("grader.").split(".")[0].split("[")[0]
    if kind == JSON:
        return "name" if key == "name" else "whole"
    names = {field.name for field in FIELDS[kind]}
    key = key if key in names else _PLACES.get(key, key)
    return key if key in names or key == "name" else "more" if key else "form"


def _messages(values: Mapping[str, str]) -> Any:
    if values["messages"].strip():
        return _json(values, "messages")
    said = [("system", plain(values["instructions"])), ("user", plain(values["prompt"]))]
    return [{"role": role, "content": text} for role, text in said if text.strip()]


def _said(messages: Any) -> dict[str, str]:
    """Return the two fields of a judge's messages, or the messages as JSON where two can't hold them."""
    found = {"system": "", "user": ""}
    for message in messages:
        role, text = message["role"], message["content"]
        if (
            role not in found
            or found[role]
            or not isinstance(text, str)
            or set(message) - {"role", "content"}
        ):
            return {"messages": _text(messages)}
        found[role] = text
    return {"instructions": found["system"], "prompt": found["user"]}


def _json(values: Mapping[str, str], key: str) -> Any:
    typed = values[key].strip()
    if not typed:
        return None
    try:
        return read_json(typed)
    except NotJson as problem:
        raise Refused(key, f"This is not JSON: {problem}.") from None


def _number(typed: str) -> Any:
    """Return what was typed as a number; anything else goes on as text, for the validator to refuse."""
    try:
        value = read_json(typed.strip())
    except NotJson:
        return typed
    return value if isinstance(value, int | float) and not isinstance(value, bool) else typed


def plain(typed: str) -> str:
    """Return a field's text with the line ends a browser changed put back."""
    return typed.replace("\r\n", "\n")


def _lines(typed: str) -> list[str]:
    return [line.strip() for line in typed.splitlines() if line.strip()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)

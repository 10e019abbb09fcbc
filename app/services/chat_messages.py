"""The messages of a conversation, and the tools it may call: what each may hold on the wire.

Reads JSON and no database; nothing here knows which model will answer. Called by `chat_request` and, for the
tools of responses, by `response_request`.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.core import fields, refusals
from app.core.fields import Absent, Array, Field, Flag, Inner, Made, Text, Word

MOST_MESSAGES = 2_048
MOST_TOOLS = 128

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_TEXT = ("image_url", "input_audio", "file")


def plain_object(value: Any, param: str) -> dict[str, Any]:
    """Return an object as it is. Raises: InvalidRequest."""
    if not isinstance(value, Mapping):
        raise refusals.wrong_type("an object", value, param)
    return dict(value)


def _tool_name(value: Any, param: str) -> str:
    name = Text().check(value, param)
    if not _NAME.fullmatch(name):
        raise refusals.invalid("a name holds 1 to 64 of the characters a-z, A-Z, 0-9, _ and -", param)
    return name


def _tool(value: Any, param: str) -> dict[str, Any]:
    if plain_object(value, param).get("type") == "custom":
        raise refusals.unsupported("tools of type 'custom' are not offered here.", f"{param}.type")
    return _TOOL.check(value, param)


def _message(value: Any, param: str) -> dict[str, Any]:
    given = plain_object(value, param)
    if given.get("role") is None:
        raise refusals.missing(f"{param}.role")
    role = _ROLE.check(given["role"], f"{param}.role")
    known: Mapping[str, Field] = _COMMON
    required: tuple[str, ...] = ("content",)
    if role == "assistant":
        known = _COMMON | _ASSISTANT
        if given.get("tool_calls") is not None or given.get("refusal") is not None:
            required = ()
    elif role == "tool":
        known, required = _COMMON | {"tool_call_id": Text(256)}, ("content", "tool_call_id")
    found = fields.read(known, given, required=required, prefix=f"{param}.")
    found.pop("annotations", None)
    return {"content": None, **found}


def _content(value: Any, param: str) -> Any:
    if isinstance(value, str):
        return Text().check(value, param)
    if not isinstance(value, list):
        raise refusals.wrong_type("a string or an array", value, param)
    return _PARTS.check(value, param)


def _part(value: Any, param: str) -> dict[str, Any]:
    kind = plain_object(value, param).get("type")
    if kind in _NOT_TEXT:
        raise refusals.unsupported(f"the models here read text only, no '{kind}'.", f"{param}.type")
    if kind not in ("text", "refusal"):
        raise refusals.wrong_value(str(kind), ("text", "refusal"), f"{param}.type")
    return Inner({"type": Text(), kind: Text()}, required=(kind,)).check(value, param)


NAME = Made(_tool_name, {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"})
FUNCTION: dict[str, Field] = {
    "name": NAME,
    "description": Text(),
    "parameters": Made(plain_object, {"type": "object"}),
    "strict": Flag(),
}
_TOOL = Inner(
    {"type": Word(("function",)), "function": Inner(FUNCTION, required=("name",))},
    required=("type", "function"),
)
_REFERENCE = Inner(
    {"type": Word(("function",)), "function": Inner({"name": NAME}, required=("name",))},
    required=("type", "function"),
)
_CALL = Inner(
    {
        "id": Text(256),
        "type": Word(("function",)),
        "function": Inner({"name": NAME, "arguments": Text()}, required=("name", "arguments")),
    },
    required=("id", "type", "function"),
)
_ALLOWED = Inner(
    {"mode": Word(("auto", "required")), "tools": Array(_REFERENCE, MOST_TOOLS)}, required=("mode", "tools")
)
_PARTS = Array(Made(_part, {"type": "object"}), MOST_MESSAGES)
_ROLE = Word(("developer", "system", "user", "assistant", "tool"))
_COMMON: dict[str, Field] = {
    "role": _ROLE,
    "content": Made(_content, {"anyOf": [Text().schema(), _PARTS.schema()]}),
    "name": Text(256),
}
_ASSISTANT: dict[str, Field] = {
    "tool_calls": Array(_CALL, MOST_TOOLS),
    "refusal": Text(),
    "annotations": Made(lambda value, _param: value, {}),
    # As this service answers it: what a reasoning model thought, for its template.
    "reasoning_content": Text(),
    "audio": Absent("no audio is offered here."),
    "function_call": Absent("'tool_calls' has taken the place of 'function_call'."),
}
MESSAGES = Array(
    Made(_message, fields.schema_of(_COMMON | _ASSISTANT | {"tool_call_id": Text(256)}, ("role",))),
    MOST_MESSAGES,
)
TOOLS = Array(Made(_tool, _TOOL.schema()), MOST_TOOLS)


def tool_choice(value: Any, param: str) -> Any:
    """Return how tools are chosen, `allowed_tools` included. Raises: InvalidRequest."""
    if isinstance(value, str):
        return Word(("none", "auto", "required")).check(value, param)
    if not isinstance(value, Mapping):
        raise refusals.wrong_type("a string or an object", value, param)
    kind = value.get("type")
    if kind == "allowed_tools":
        return Inner({"type": Text(), "allowed_tools": _ALLOWED}, required=("allowed_tools",)).check(
            value, param
        )
    if kind != "function":
        raise refusals.wrong_value(str(kind), ("function", "allowed_tools"), f"{param}.type")
    return _REFERENCE.check(value, param)


def check_tool_choice(asked: Mapping[str, Any]) -> None:
    """Refuse a choice among tools that are not there. Raises: InvalidRequest."""
    choice = asked.get("tool_choice")
    if choice is None or choice == "none":
        return
    known = {tool["function"]["name"] for tool in asked.get("tools", ())}
    if not known:
        raise refusals.invalid("it is only allowed when 'tools' are specified", "tool_choice")
    for name in allowed_names(choice):
        if name not in known:
            raise refusals.invalid(f"there is no tool '{name}' in 'tools'", "tool_choice")


def allowed_names(choice: Any) -> list[str]:
    """Return the names of the tools that a choice picks out; a word picks none."""
    if isinstance(choice, str):
        return []
    if choice["type"] == "function":
        return [choice["function"]["name"]]
    return [tool["function"]["name"] for tool in choice["allowed_tools"]["tools"]]


def text_of(content: Any) -> str:
    """Return a message's content as one text."""
    if content is None or isinstance(content, str):
        return content or ""
    parts: Sequence[Mapping[str, Any]] = content
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)

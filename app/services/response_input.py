"""The input of a response: its items as they are kept and listed, and the conversation they make.

Reads JSON and no database. What comes before them hangs on `previous_response_id`, which `responses` follows.
Called by `response_request` and `responses`.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Iterable, Mapping
from typing import Any

from app.core import ids, refusals
from app.core.fields import Array, Field, Inner, Made, Text, Word
from app.services.chat_messages import MOST_MESSAGES, NAME, plain_object

Item = dict[str, Any]

_ROLE = Word(("user", "assistant", "system", "developer"))
_NOT_TEXT = ("input_image", "input_file", "input_audio")
# What answers hold and a client sends back with them; it changes nothing.
_ECHOED: dict[str, Field] = dict.fromkeys(
    ("id", "status", "phase", "annotations", "logprobs", "encrypted_content", "parsed", "parsed_arguments"),
    Made(lambda value, _param: value, {}),
)


def _part(value: Any, param: str) -> Item:
    kind = plain_object(value, param).get("type")
    if kind in _NOT_TEXT:
        raise refusals.unsupported(f"the models here read text only, no '{kind}'.", f"{param}.type")
    if kind not in ("input_text", "output_text", "refusal"):
        raise refusals.wrong_value(str(kind), ("input_text", "output_text", "refusal"), f"{param}.type")
    key = "refusal" if kind == "refusal" else "text"
    found = Inner(_ECHOED | {"type": Text(), key: Text()}, required=(key,)).check(value, param)
    return {"type": kind, key: found[key]}


_PARTS = Array(Made(_part, {"type": "object"}), MOST_MESSAGES)


def _content(value: Any, param: str) -> Any:
    return Text().check(value, param) if isinstance(value, str) else _PARTS.check(value, param)


_CONTENT = Made(_content, {"anyOf": [Text().schema(), _PARTS.schema()]})
_THOUGHTS = Array(Inner({"type": Text(), "text": Text()}, required=("text",)), MOST_MESSAGES, least=0)
_KINDS: dict[str, tuple[dict[str, Field], tuple[str, ...]]] = {
    "message": ({"role": _ROLE, "content": _CONTENT}, ("role", "content")),
    "function_call": (
        {"call_id": Text(256), "name": NAME, "arguments": Text()},
        ("call_id", "name", "arguments"),
    ),
    "function_call_output": ({"call_id": Text(256), "output": _CONTENT}, ("call_id", "output")),
    "reasoning": ({"summary": _THOUGHTS, "content": _THOUGHTS}, ()),
}


def _item(value: Any, param: str) -> Item:
    given = plain_object(value, param)
    kind = given.get("type") or ("message" if "role" in given else None)
    if kind is None:
        raise refusals.missing(f"{param}.type")
    if not isinstance(kind, str) or kind not in _KINDS:
        offered = ", ".join(f"'{name}'" for name in _KINDS)
        raise refusals.unsupported(
            f"'{str(kind)[:80]}' is no input here; there are {offered}.", f"{param}.type"
        )
    known, required = _KINDS[kind]
    found = Inner(_ECHOED | {"type": Text(), **known}, required=required).check(
        {"type": kind, **given}, param
    )
    return _KEPT[kind](found)


def _message(item: Item) -> Item:
    role, content = item["role"], item["content"]
    parts = content if isinstance(content, list) else [{"type": "input_text", "text": content}]
    if role == "assistant":
        parts = [_said(part) for part in parts]
    return {
        "id": ids.new_id("message"),
        "type": "message",
        "role": role,
        "status": "completed",
        "content": parts,
    }


def _said(part: Item) -> Item:
    if part["type"] == "refusal":
        return part
    return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}


def _call(item: Item) -> Item:
    told = {key: item[key] for key in ("call_id", "name", "arguments")}
    return {"id": ids.new_id("function_call"), "type": "function_call", "status": "completed", **told}


def _output(item: Item) -> Item:
    told = {key: item[key] for key in ("call_id", "output")}
    return {"id": ids.new_id("call_output"), "type": "function_call_output", "status": "completed", **told}


def _thought(item: Item) -> Item:
    told = {key: item.get(key) or [] for key in ("summary", "content")}
    return {"id": ids.new_id("reasoning"), "type": "reasoning", **told}


_KEPT = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "reasoning": _thought,
}
_ITEMS = Array(Made(_item, {"type": "object"}), MOST_MESSAGES)


def items(value: Any, param: str) -> list[Item]:
    """Return the input as items, each with an id. Raises: InvalidRequest naming the first wrong part."""
    if isinstance(value, str):
        return [_message({"role": "user", "content": Text().check(value, param)})]
    if not isinstance(value, list):
        raise refusals.wrong_type("a string or an array", value, param)
    return _ITEMS.check(value, param)


INPUT = Made(items, {"anyOf": [Text().schema(), _ITEMS.schema()]})


def messages(conversation: Iterable[Item], *, instructions: str | None) -> list[dict[str, Any]]:
    """Return the chat that items make: calls join the message they belong to, thoughts go before it."""
    found: list[dict[str, Any]] = []
    if instructions is not None:
        found.append({"role": "system", "content": instructions})
    thought = ""
    for item in conversation:
        if item["type"] == "reasoning":
            thought += _text(item.get("content") or item["summary"])
        elif item["type"] == "function_call_output":
            found.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])})
        elif item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": None} | _thinking(thought))
                thought = ""
            found[-1].setdefault("tool_calls", []).append(call)
        elif item["role"] == "assistant":
            text = _text(item["content"])
            found.append({"role": "assistant", "content": text} | _thinking(thought))
            thought = ""
        else:
            found.append({"role": item["role"], "content": _text(item["content"])})
    return found


def _thinking(thought: str) -> dict[str, Any]:
    return {"reasoning_content": thought} if thought else {}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: list[Mapping[str, Any]] = content
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)

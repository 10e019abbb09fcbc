"""One line of a dataset: from bytes to a Row, or the list of what is wrong with it.

Knows the line format of reinforcement fine-tuning and nothing of files, limits or graders: `datasets` does.

Source: https://platform.openai.com/docs/guides/reinforcement-fine-tuning (prepare your data)
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from app.graders.json_text import NotJson, compact, is_storable, read_json

MAX_LINE_BYTES = 1024 * 1024
ROLES = ("system", "developer", "user", "assistant", "tool")
LAST_ROLES = ("user", "tool")
RESERVED = ("messages", "tools")

_TEXT_PARTS = ("text", "input_text")


class BadLine(ValueError):
    """A line that is no row; `complaints` are whole sentences."""

    def __init__(self, *complaints: str) -> None:
        super().__init__(" ".join(complaints))
        self.complaints = complaints


@dataclass(frozen=True, slots=True)
class Row:
    """One example: the prompt, its tools, and the item (every other key), which graders read.

    `index` counts rows from 0 and passes over blank lines. Each message's `content` is plain text.
    """

    index: int
    messages: list[dict[str, Any]]
    item: dict[str, Any]
    tools: list[dict[str, Any]] | None

    @property
    def prompt_hash(self) -> bytes:
        """Return a digest that two rows share when the model would be asked the same."""
        asked = compact([self.messages, self.tools])
        return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_row(line: bytes, index: int) -> Row:
    """Read one line.

    Raises: BadLine, with every complaint about it.
    """
    record = _record(line)
    complaints = [*_message_complaints(record), *_tool_complaints(record)]
    if complaints:
        raise BadLine(*complaints)
    return Row(
        index=index,
        messages=[_plain(message) for message in record["messages"]],
        item={key: value for key, value in record.items() if key not in RESERVED},
        tools=record.get("tools"),
    )


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean "…"?` when one of the words is close, else a full stop."""
    close = get_close_matches(word, list(words), n=1)
    return f'; did you mean "{close[0]}"?' if close else "."


def _record(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise BadLine(f"The line is longer than {MAX_LINE_BYTES:,} bytes.")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine(
            f"The line is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}."
        ) from None
    try:
        record = read_json(text, unique_keys=True)
    except NotJson as error:
        raise BadLine(f"The line cannot be read: {error}.") from None
    if not isinstance(record, dict):
        raise BadLine(f"The line must be a JSON object, but is {_kind(record)}.")
    # Only an escape can bring these past the decoder; most lines hold none and need no walk.
    if b"\\u" in line and not is_storable(record):
        raise BadLine("A text holds a NUL character or half of a surrogate pair.")
    return record


def _message_complaints(record: dict[str, Any]) -> list[str]:
    if "messages" not in record:
        hint = nearest("messages", record)
        return [f"`messages` is missing{hint}"]
    messages = record["messages"]
    if not isinstance(messages, list):
        return [f"`messages` must be an array, but is {_kind(messages)}."]
    if not messages:
        return ["`messages` is empty."]
    complaints = [
        complaint
        for place, message in enumerate(messages)
        for complaint in _one_message(message, f"messages[{place}]")
    ]
    if not complaints and messages[-1]["role"] not in LAST_ROLES:
        complaints.append(
            f'The last message must have the role "user" or "tool", but has "{messages[-1]["role"]}"; '
            "the right answer belongs into a key of its own beside `messages`."
        )
    return complaints


def _one_message(message: object, place: str) -> list[str]:
    if not isinstance(message, dict):
        return [f"`{place}` must be an object, but is {_kind(message)}."]
    complaints = []
    role = message.get("role")
    if "role" not in message:
        complaints.append(f"`{place}.role` is missing.")
    elif not isinstance(role, str):
        complaints.append(f"`{place}.role` must be a string, but is {_kind(role)}.")
    elif role not in ROLES:
        known = ", ".join(ROLES)
        close = get_close_matches(role.lower(), ROLES, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"roles are {known}."
        complaints.append(f'`{place}.role` is "{role[:60]}"; {hint}')
    return [*complaints, *_content_complaints(message, place)]


def _content_complaints(message: dict[str, Any], place: str) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return []
    if content is None:
        calls_tools = message.get("role") == "assistant" and message.get("tool_calls")
        return [] if calls_tools else [f"`{place}.content` is missing."]
    if not isinstance(content, list):
        return [f"`{place}.content` must be a string or an array of text parts, but is {_kind(content)}."]
    for index, part in enumerate(content):
        at = f"{place}.content[{index}]"
        if not isinstance(part, dict):
            return [f"`{at}` must be an object, but is {_kind(part)}."]
        if part.get("type") not in _TEXT_PARTS:
            return [f"`{at}.type` is {compact(part.get('type'))[:60]}; only text parts can be trained on."]
        if not isinstance(part.get("text"), str):
            return [f"`{at}.text` must be a string."]
    return []


def _tool_complaints(record: dict[str, Any]) -> list[str]:
    tools = record.get("tools")
    if tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return []
    return ["`tools` must be an array of objects."]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return {**message, "content": content or ""}


def _kind(value: object) -> str:
    names: dict[type, str] = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")

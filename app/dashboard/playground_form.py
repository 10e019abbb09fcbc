"""The Playground's form: its texts, the request they make, what was wrong with them, the request as code.

The request is read by the API's own reader, so that a form and a program are refused alike. Called by
`playground`.
"""

import json
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from starlette.datastructures import FormData

from app.core.errors import InvalidRequest
from app.core.response_format import schema_of
from app.dashboard.contexts import Turn
from app.dashboard.visitor import text
from app.graders.json_text import NotJson, is_storable, read_json
from app.services.chat_request import ChatRequest, parse_chat_request

ROLES = ("system", "user", "assistant")
NUMBERS = {
    "n": int,
    "temperature": float,
    "top_p": float,
    "max_completion_tokens": int,
    "seed": int,
}
DEFAULTS = {
    "model": "",
    "compare": "",
    "n": "1",
    "temperature": "1",
    "top_p": "",
    "max_completion_tokens": "256",
    "seed": "",
    "response_format": "",
    "grade_with": "",
    "item": "{}",
    "job": "",
}
MOST_SAMPLES = 8
MOST_TURNS = 40


class Refused(Exception):
    """What a field holds can't be asked: the field, and what to change."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass
class Asked:
    """The form as it was sent."""

    values: dict[str, str] = field(default_factory=lambda: dict(DEFAULTS))
    turns: list[Turn] = field(default_factory=lambda: [Turn("user", "")])

    @classmethod
    def of(cls, form: FormData) -> "Asked":
        """Read a form."""
        values = {name: text(form, name).strip() for name in DEFAULTS}
        roles, contents = (
            [one for one in form.getlist(name) if isinstance(one, str)] for name in ("role", "content")
        )
        pairs = zip_longest(roles[:MOST_TURNS], contents[:MOST_TURNS], fillvalue="")
        turns = [
            Turn(role if role in ROLES else "user", content.replace("\x00", "").replace("\r\n", "\n"))
            for role, content in pairs
        ]
        return cls(values, turns or [Turn("user", "")])

    @property
    def names(self) -> list[str]:
        """The models asked, one or two."""
        wanted = [self.values["model"], self.values["compare"]]
        return [name for name in wanted if name] or [""]

    @property
    def is_graded(self) -> bool:
        """True when answers are to be graded."""
        return bool(self.values["grade_with"])

    def arrange(self, do: str) -> bool:
        """Add or remove a message when that is what a button says; say whether it was."""
        verb, _, place = do.partition(":")
        if verb == "add" and len(self.turns) < MOST_TURNS:
            self.turns.append(Turn("assistant" if self.turns[-1].role == "user" else "user", ""))
        elif verb == "remove" and place.isdecimal() and int(place) < len(self.turns) > 1:
            del self.turns[int(place)]
        return verb in ("add", "remove")

    def body(self, model: str) -> dict[str, Any]:
        """Return the request as a program would send it. Raises: Refused."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.text} for turn in self.turns],
        }
        for name, number in NUMBERS.items():
            given = self.values[name]
            if given and not (name == "n" and given == "1"):
                try:
                    body[name] = number(given)
                except ValueError:
                    raise Refused(name, "This is no number.") from None
        if self.values["response_format"]:
            body["response_format"] = _json(self.values["response_format"], "response_format")
        return body

    def request(self, model: str, *, stream: bool = False) -> ChatRequest:
        """Return the request for one of the models. Raises: Refused."""
        body = self.body(model)
        if not model:
            raise Refused("model", "Choose a model.")
        if not self.turns[-1].text.strip():
            raise Refused("messages", "The last message is empty: write what the model should answer.")
        if body.get("n", 1) > MOST_SAMPLES:
            raise Refused("n", f"At most {MOST_SAMPLES} samples at once here; the API gives up to 128.")
        try:
            return parse_chat_request(body | ({"stream": True} if stream else {}))
        except InvalidRequest as refused:
            name = (refused.param or "").split(".")[0].split("[")[0]
            known = {*NUMBERS, "response_format", "model", "messages"}
            raise Refused(name if name in known else "messages", refused.message) from refused

    @property
    def wants_json(self) -> bool:
        """True when answers must be JSON."""
        asked = self.request(self.names[0]).asked
        return schema_of(asked.get("response_format")) is not None

    def item(self) -> dict[str, Any]:
        """Return what graders read as `item`. Raises: Refused."""
        item = _json(self.values["item"] or "{}", "item")
        if not isinstance(item, dict):
            raise Refused("item", "The item must be a JSON object, as in a dataset's line.")
        return item


def _json(given: str, name: str) -> Any:
    try:
        found = read_json(given)
    except NotJson as problem:
        raise Refused(name, f"This can't be read: {problem}.") from problem
    if not is_storable(found):
        raise Refused(name, "A text holds a NUL character or half of a surrogate pair.")
    return found


def python(body: dict[str, Any], base_url: str) -> str:
    """Return the request as a program."""
    lines = [f"    {name}={_literal(value)}," for name, value in body.items()]
    return "\n".join(
        (
            "from openai import OpenAI\n",
            f'client = OpenAI(base_url="{base_url}")  # the key: OPENAI_API_KEY',
            "answer = client.chat.completions.create(",
            *lines,
            ")",
            "print(answer.choices[0].message.content)",
        )
    )


def _literal(value: Any) -> str:
    if not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    words = {"true": "True", "false": "False", "null": "None"}
    lines = json.dumps(value, indent=4, ensure_ascii=False).split("\n")
    # JSON's three words that Python spells otherwise stand alone at a line's end.
    made = []
    for line in lines:
        bare, comma = (line[:-1], ",") if line.endswith(",") else (line, "")
        head, space, last = bare.rpartition(" ")
        made.append(f"{head}{space}{words.get(last, last)}{comma}")
    return "\n    ".join(made)


def curl(body: dict[str, Any], base_url: str) -> str:
    """Return the request as a shell command."""
    told = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    return (
        f"curl {base_url}/chat/completions \\\n"
        '  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d '{told}'"
    )

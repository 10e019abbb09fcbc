"""What a judge is sent: its instructions, the grader's messages, and the answer behind a fence.

The answer is a stranger's text. Wherever a template names it, it is set between two marked lines whose id is
a digest of the text, which no text can hold of itself; and it never stands in a message of the system role:
there the template gets a reference, and the text follows in a message of its own. Called by `judge`.
"""

import hashlib
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from app.graders import template
from app.graders.case import Case
from app.graders.json_text import compact
from app.graders.kinds import AudioPart, ImagePart, Judge, Message, MessagePart, ScoreModel, TextPart

INSTRUCTING = ("system", "developer")
DEFAULT_RANGE = (0.0, 1.0)

Wire = dict[str, Any]


def messages(grader: Judge, case: Case) -> list[Wire]:
    """Return the chat messages that ask for one judgement. Raises: UnresolvedVariable."""
    sent: list[Wire] = [{"role": "system", "content": _instructions(grader)}]
    for message in grader.input:
        if message.role in INSTRUCTING:
            sent += _instructing(message, case, sent)
        else:
            sent.append({"role": message.role, "content": _content(message, case)})
    if all(message["role"] == "system" for message in sent):
        # Some services refuse a conversation in which nobody has spoken.
        sent.append({"role": "user", "content": "Grade now."})
    return sent


def answer_schema(grader: Judge) -> Wire:
    """Return the JSON schema of the judge's answer: reasons first, so that the result follows from them."""
    step = {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    }
    result: Wire = {"type": "number"}
    if not isinstance(grader, ScoreModel):
        result = {"type": "string", "enum": grader.labels}
    return {
        "type": "object",
        "properties": {"steps": {"type": "array", "items": step}, "result": result},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }


def bounds(grader: ScoreModel) -> tuple[float, float]:
    """Return the ends of a score's range."""
    low, high = grader.range or DEFAULT_RANGE
    return low, high


def fenced(text: str) -> str:
    """Return a stranger's text between two lines that it can't contain."""
    mark = _mark(text)
    return f"\n<<answer {mark}\n{text}\nanswer {mark}>>\n"


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _instructions(grader: Judge) -> str:
    fence = _prompt("fence")
    if isinstance(grader, ScoreModel):
        low, high = bounds(grader)
        return Template(_prompt("score")).substitute(low=f"{low:g}", high=f"{high:g}", fence=fence)
    return Template(_prompt("label")).substitute(labels=compact(grader.labels), fence=fence)


@cache
def _prompt(name: str) -> str:
    return files("app.graders").joinpath("prompts", f"{name}.txt").read_text("utf-8").strip()


def _instructing(message: Message, case: Case, sent: list[Wire]) -> list[Wire]:
    """Return a system message and what it refers to; one that leads is joined to ours."""
    given = message.content
    written = given if isinstance(given, str) else "".join(p.text for p in given if isinstance(p, TextPart))
    strangers: list[str] = []
    text = _filled(written, case, strangers)
    more: list[Wire] = [{"role": "user", "content": fenced(found).strip()} for found in strangers]
    if len(sent) == 1:
        # Many chat templates take a system message at the very beginning only.
        sent[0] = {"role": "system", "content": f"{sent[0]['content']}\n\n{text}"}
        return more
    return [{"role": "system", "content": text}, *more]


def _content(message: Message, case: Case) -> str | list[Wire]:
    if isinstance(message.content, str):
        return _filled(message.content, case)
    if all(part.type in ("input_text", "output_text") for part in message.content):
        return "".join(str(_part(part, case)["text"]) for part in message.content)
    return [_part(part, case) for part in message.content]


def _part(part: MessagePart, case: Case) -> Wire:
    if isinstance(part, ImagePart):
        image = {"url": case.render(part.image_url)}
        return {"type": "image_url", "image_url": image | ({"detail": part.detail} if part.detail else {})}
    if isinstance(part, AudioPart):
        return {"type": "input_audio", "input_audio": part.input_audio.model_dump()}
    return {"type": "text", "text": _filled(part.text, case)}


def _filled(text: str, case: Case, strangers: list[str] | None = None) -> str:
    """Fill in a template; what the answer says is fenced, or put into `strangers` and only referred to."""
    pieces: list[str] = []
    for piece in template.parse(text).pieces:
        if isinstance(piece, str):
            pieces.append(piece)
            continue
        root = case.item if piece.namespace == "item" else case.sample
        # Half a surrogate pair, which JSON can smuggle in, has no place in a request.
        value = template.text_of(piece.resolve(root)).encode("utf-8", "replace").decode()
        if piece.namespace == "item":
            pieces.append(value)
        elif strangers is None:
            pieces.append(fenced(value))
        else:
            strangers.append(value)
            pieces.append(f"[the text of `<<answer {_mark(value)}`, given below]")
    return "".join(pieces)

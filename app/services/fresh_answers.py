"""Fresh answers for a trial: a model served here answers the first prompts of a file, several times each.

What a grader makes of the base model's own answers says whether a run would have anything to learn from. No
transaction is open while the model answers. Called by both faces before they gather a trial.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from app.core.context import Context
from app.core.engines import Served
from app.core.errors import InvalidRequest, Unavailable
from app.core.refusals import invalid
from app.services import completions, datasets, files, inference
from app.services.chat_request import ChatRequest, parse_chat_request
from app.services.dataset_rows import BadLine, Row
from app.services.trials import MOST_ANSWERS, Asked

PROMPTS, SAMPLES = 8, 4
MOST_PROMPTS, MOST_SAMPLES = 50, 16
TOKENS = 256
# A web thread waits for all of it.
MOST_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Fresh:
    """Who answers how many rows, how often each."""

    model: str
    prompts: int = PROMPTS
    samples: int = SAMPLES


def drawn(context: Context, *, project_id: str, asked: Asked, fresh: Fresh, response_format: Any) -> Asked:
    """Return what a trial runs on with a model's answers added to its own. No transaction may be open.

    Raises: InvalidRequest, NotFound, RateLimited, Unavailable when the model or its engine can't answer.
    """
    if asked.job is not None:
        raise invalid("fresh answers are given to rows of a file, not of a job", "fresh")
    if asked.file_id is None:
        raise invalid("a model can answer only prompts of a file", "file")
    if fresh.prompts * fresh.samples > MOST_ANSWERS:
        raise invalid(f"a trial grades at most {MOST_ANSWERS} answers", "fresh")
    rows = _rows(context, project_id, asked.file_id, fresh.prompts)
    served = inference.served(context, project_id=project_id, name=fresh.model)
    requests = [_request(fresh, row, response_format) for row in rows]
    said = asyncio.run(_answers(served, requests))
    answers = [
        (row.index, text) for row, texts in zip(rows, said, strict=True) for text in texts[: fresh.samples]
    ]
    return replace(asked, answers=[*asked.answers, *answers])


def _rows(context: Context, project_id: str, file_id: str, most: int) -> list[Row]:
    with context.db.reading() as session:
        file = files.get_file(session, project_id=project_id, file_id=file_id)
        path = context.storage.path(files.file_uri(file))
    try:
        return list(islice(datasets.read_rows(path), most))
    except BadLine as problem:
        raise invalid(f"the file has a line that can't be read. {str(problem).rstrip('.')}", "file") from None
    except FileNotFoundError:
        raise invalid("its bytes are missing from storage", "file") from None


def _request(fresh: Fresh, row: Row, response_format: Any) -> ChatRequest:
    body: dict[str, Any] = {
        "model": fresh.model,
        "messages": row.messages,
        "n": fresh.samples,
        "temperature": 1.0,
        "max_completion_tokens": TOKENS,
        # The same rows give the same answers again, so that two graders can be compared on them.
        "seed": row.index,
    }
    if row.tools:
        body["tools"] = row.tools
    if response_format is not None:
        body["response_format"] = response_format
    try:
        return parse_chat_request(body)
    except InvalidRequest as problem:
        raise invalid(f"row {row.index} can't be asked. {problem.message.rstrip('.')}", "file") from None


async def _answers(served: Served, requests: Sequence[ChatRequest]) -> list[list[str]]:
    try:
        async with asyncio.timeout(MOST_SECONDS):
            said = await asyncio.gather(*(completions.answer(served, request) for request in requests))
    except TimeoutError:
        raise Unavailable(
            f"'{served.model}' did not answer {len(requests)} prompts within {MOST_SECONDS:g} seconds. "
            "Try again when it has less to do."
        ) from None
    return [[choice["message"]["content"] or "" for choice in made["choices"]] for made in said]

"""One request inside the inference process: what is to be computed, and where its pieces go.

Made by `api.py`, which reads `events`; filled by `batch.py` on the thread that computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from app.core.errors import AppError
from worker.engine.decoder import Row
from worker.engine.grammar import Grammar
from worker.engine.seeds import uniform
from worker.serving.choices import Choice, Piece
from worker.serving.reading import Reader
from worker.serving.request import ChatRequest
from worker.serving.spelling import Spelling
from worker.serving.template import Asked


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took, in tokens."""

    prompt: int
    cached: int
    completion: int
    reasoning: int


Event = Piece | Usage | AppError
"""A piece of an answer; the usage, which is the last event of a request that went well; or why it didn't."""


@dataclass(slots=True)
class Ticket:
    """A request on its way. `adapter` names the weights beside the base's, which lie in `directory`.

    `emit` may be called from any thread; `gone` is set by whoever no longer listens.
    """

    request: ChatRequest
    asked: Asked
    source: str
    adapter: str | None
    directory: Path | None
    emit: Callable[[Event], None]
    choices: list[Choice]
    cached: int = 0
    gone: bool = False
    _ended: set[int] = field(default_factory=set)

    @property
    def tokens(self) -> tuple[int, ...]:
        """What is read before the first choice is made: the prompt, and what the grammar opens with."""
        return (*self.asked.token_ids, *self.choices[0].row.tokens[: self.choices[0].row.read])

    def tell(self, choice: Choice) -> None:
        """Pass on what a choice's new tokens make known, and the usage once all have ended."""
        for piece in choice.advance():
            self.emit(piece)
        if choice.ended:
            self._ended.add(choice.index)
            if len(self._ended) == len(self.choices):
                self.emit(self._usage())

    def _usage(self) -> Usage:
        return Usage(
            prompt=len(self.asked.token_ids),
            cached=min(self.cached, len(self.asked.token_ids)),
            completion=sum(choice.tokens for choice in self.choices),
            reasoning=sum(choice.reasoning_tokens for choice in self.choices),
        )


def choices_of(
    request: ChatRequest,
    asked: Asked,
    *,
    grammar: Grammar | None,
    most: int,
    stops: tuple[int, ...],
    spelling: Spelling,
) -> list[Choice]:
    """Return a request's choices before their first token.

    What draws a token is named by the request's seed, the choice and the place alone, whatever else is
    computed beside it.
    """
    names = [tool["function"]["name"] for tool in request.tools] if request.tool_choice != "none" else []
    return [
        Choice(
            index,
            Row(
                uniform=partial(uniform, request.seed, "serve", index),
                most=most,
                stops=stops,
                temperature=request.temperature,
                cursor=grammar.cursor() if grammar is not None and not asked.thinking else None,
                shaping=request.shaping,
                alternatives=request.alternatives,
            ),
            Reader(stops=request.stops, tools=names, thinking=asked.thinking),
            spelling,
            after_thought=grammar if asked.thinking else None,
        )
        for index in range(request.n)
    ]

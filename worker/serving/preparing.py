"""From a request to a ticket: the conversation in tokens, the grammar its answer must follow, its choices.

Heavy for a long conversation or a new schema, so `api.py` calls it beside its event loop.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from app.core import refusals
from app.core.errors import InvalidRequest
from worker.engine.grammar import Grammar, words_of
from worker.engine.policy import Policy
from worker.serving.places import Place
from worker.serving.request import ChatRequest
from worker.serving.spelling import Spelling
from worker.serving.template import Template
from worker.serving.ticket import Event, Ticket, choices_of

_GRAMMARS_KEPT = 64


class Preparing:
    """What is worth keeping of one base model between requests: its vocabulary and compiled grammars."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._template = Template(policy)
        self._words: Any = None
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        self._spelling = Spelling(policy.tokenizer)

    def ticket(
        self, request: ChatRequest, place: Place, *, source: str, emit: Callable[[Event], None]
    ) -> Ticket:
        """Return what is to be computed for a request. Raises: InvalidRequest."""
        policy = self._policy
        asked = self._template.encode(request)
        for token in request.shaping.logit_bias if request.shaping is not None else ():
            if token >= policy.vocabulary:
                raise refusals.invalid(
                    f"the model has {policy.vocabulary} tokens, so no {token}", "logit_bias"
                )
        room = (policy.context_length or 1 << 30) - len(asked.token_ids)
        choices = choices_of(
            request,
            asked,
            grammar=self._grammar(request),
            most=room if request.most is None else min(request.most, room),
            stops=policy.stop_ids,
            spelling=self._spelling,
        )
        for choice in choices:
            # What opens every answer is read with the prompt.
            choice.row.take_forced()
            choice.row.read = len(choice.row.tokens)
        return Ticket(request, asked, source, place.adapter_name, place.adapter, emit, choices)

    def _grammar(self, request: ChatRequest) -> Grammar | None:
        schema, param = request.schema, "response_format"
        if request.tools and request.tool_choice not in ("auto", "none"):
            schema, param = _call_schema(request), "tools"
        if schema is None:
            return None
        # The order of a schema's keys is the order they are written in.
        key = json.dumps(schema)
        if key not in self._grammars:
            if self._words is None:
                self._words = words_of(self._policy.tokenizer, self._policy.vocabulary)
            try:
                self._grammars[key] = Grammar.from_json_schema(schema, self._words)
            except ValueError as problem:
                raise InvalidRequest(f"Invalid '{param}': {problem}.", param=param) from problem
        self._grammars.move_to_end(key)
        while len(self._grammars) > _GRAMMARS_KEPT:
            self._grammars.popitem(last=False)
        return self._grammars[key]


def _call_schema(request: ChatRequest) -> dict[str, Any]:
    """Return the schema of a call that has to be made."""
    functions = {tool["function"]["name"]: tool["function"] for tool in request.tools}
    if not isinstance(request.tool_choice, str):
        name = (request.tool_choice.get("function") or {}).get("name")
        if name not in functions:
            raise refusals.invalid(f"there is no tool '{name}'", "tool_choice")
        functions = {name: functions[name]}
    elif request.tool_choice != "required":
        raise refusals.wrong_value(request.tool_choice, ("none", "auto", "required"), "tool_choice")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, function in functions.items()
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}

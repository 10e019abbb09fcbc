"""What stands around responses on the wire: a deletion, a count.

The response itself is made in `services/response_events.py`; the OpenAPI document has it in
`document_responses.py`.
"""

from typing import Literal

from pydantic import BaseModel


class DeletedResponse(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["response.deleted"] = "response.deleted"
    deleted: Literal[True] = True


class InputTokens(BaseModel):
    """How many tokens an input is."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int

"""What stands around chat completions on the wire: a stored one, its deletion, its new metadata.

The completion itself is made in `services/chat_answer.py`; the OpenAPI document has it in `document_chat.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from app.core import fields
from app.core.refusals import missing
from app.core.tables import Completion

NEW_LABELS: dict[str, fields.Field] = {"metadata": fields.METADATA}


class DeletedCompletion(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


def labels_in(document: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the metadata of an update, null for none of it. Raises: InvalidRequest."""
    if "metadata" not in document:
        raise missing("metadata")
    labels: dict[str, str] | None = fields.read(NEW_LABELS, document).get("metadata")
    return labels


def stored_completion(row: Completion) -> dict[str, Any]:
    """Return the wire form of a stored completion: the completion, and what was asked."""
    return {**row.answer, **row.asked, "metadata": row.labels or {}}

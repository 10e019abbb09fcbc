"""The metadata filter of a list, in every encoding the SDKs send. Called by the routes of such lists.

Source: `metadata[k]=v` (both SDKs, brackets percent-encoded), `metadata=null`, `metadata=` (Node, null).
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.core import refusals

_MOST = 16


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Which metadata an object must have, or that it must have none."""

    labels: dict[str, str]
    without: bool


def read_filter(request: Request) -> LabelFilter:
    """Return the filter in the query. `metadata[k]=` asks for the empty value, not for any."""
    labels, without = {}, False
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value not in ("", "null"):
                raise refusals.invalid(
                    "expected metadata[key]=value, or null for objects without metadata", name
                )
            without = True
        elif name.startswith("metadata[") and name.endswith("]"):
            labels[name[len("metadata[") : -1]] = value
    if len(labels) > _MOST:
        raise refusals.invalid(f"at most {_MOST} pairs can be asked for", "metadata")
    return LabelFilter(labels, without)


ByLabels = Annotated[LabelFilter, Depends(read_filter)]

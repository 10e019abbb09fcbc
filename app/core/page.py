"""Keyset paging: a page is its rows and whether more follow. Cost does not grow with the table.

Source: OpenAI's list routes take `after` (the id of the last row seen) and `limit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a list, in its order."""

    rows: Sequence[T]
    has_more: bool


def read_page(
    session: Session,
    query: Select[T],
    *,
    keys: Sequence[Any],
    id_column: Any,
    limit: int,
    after: str | None,
    descending: bool = True,
) -> Page[T]:
    """Return up to `limit` rows of `query` after the row whose id is `after`, ordered by `keys`.

    `keys` are columns of the queried table that order it totally. An `after` that the query does not
    hold is a 400, as a list can't go on from nowhere.
    """
    order = [key.desc() if descending else key.asc() for key in keys]
    if after is not None:
        anchor = session.execute(
            query.with_only_columns(*keys).where(id_column == after).order_by(None)
        ).one_or_none()
        if anchor is None:
            raise InvalidRequest(f"No object with id '{after}' to list after.", param="after")
        place, seen = tuple_(*keys), tuple_(*anchor)
        query = query.where(place < seen if descending else place > seen)
    rows = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    return Page(rows[:limit], len(rows) > limit)

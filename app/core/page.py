"""Keyset paging: a page is its rows and whether more follow. Cost does not grow with the table.

Source: OpenAI's list routes take `after` (the id of the last row seen) and `limit`.
"""

import json
from collections.abc import Mapping, Sequence
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
    among: Select[T] | None = None,
) -> Page[T]:
    """Return up to `limit` rows of `query` after the row whose id is `after`, ordered by `keys`.

    `keys` are columns of the queried table that order it totally. An `after` that `among` (the query itself,
    unless told otherwise) does not hold is a 400, as a list can't go on from nowhere. A list with a filter
    names what it is a part of: a row relabelled between two pages is still a place to go on from.
    """
    order = [key.desc() if descending else key.asc() for key in keys]
    if after is not None:
        anchor = session.execute(
            (query if among is None else among)
            .with_only_columns(*keys)
            .where(id_column == after)
            .order_by(None)
        ).one_or_none()
        if anchor is None:
            raise InvalidRequest(f"No object with id '{after}' to list after.", param="after")
        place, seen = tuple_(*keys), tuple_(*anchor)
        query = query.where(place < seen if descending else place > seen)
    rows = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    return Page(rows[:limit], len(rows) > limit)


def labelled(
    session: Session, query: Select[T], column: Any, *, labels: Mapping[str, str], without: bool = False
) -> Select[T]:
    """Return `query` for rows whose JSON `column` has all these pairs, or which have none at all."""
    if without:
        query = query.where(column.is_(None))
    for key, value in labels.items():
        # SQLite reads a key inside a quoted JSON path.
        quoted = json.dumps(key, ensure_ascii=False)[1:-1]
        place = quoted if session.get_bind().dialect.name == "sqlite" else key
        query = query.where(column[place].as_string() == value)
    return query

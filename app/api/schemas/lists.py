"""The envelopes of lists. `has_more` always stands: Node's client takes a missing one for false."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel

from app.core.page import Page


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R")
T = TypeVar("T")
Named = TypeVar("Named", bound=_HasId)


class Listed(BaseModel, Generic[T]):
    """A page of jobs, events or rollouts."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool


class ListedWithEnds(Listed[T], Generic[T]):
    """A page of files or checkpoints, which names its first and last row."""

    first_id: str | None
    last_id: str | None


class Catalogue(BaseModel, Generic[T]):
    """A list without pages: models."""

    object: Literal["list"] = "list"
    data: list[T]


def listed(page: Page[R], render: Callable[[R], T]) -> Listed[T]:
    """Return a page as it stands on the wire."""
    return Listed(data=[render(row) for row in page.rows], has_more=page.has_more)


def listed_with_ends(page: Page[Named], render: Callable[[Named], T]) -> ListedWithEnds[T]:
    """Return a page with the ids of its first and last row."""
    first, last = (page.rows[0].id, page.rows[-1].id) if page.rows else (None, None)
    data = [render(row) for row in page.rows]
    return ListedWithEnds(data=data, has_more=page.has_more, first_id=first, last_id=last)


def catalogue(rows: Iterable[R], render: Callable[[R], T]) -> Catalogue[T]:
    """Return everything at once."""
    return Catalogue(data=[render(row) for row in rows])


def rows_with_ends(page: Page[dict[str, Any]]) -> ListedWithEnds[dict[str, Any]]:
    """Return a page of what is plain JSON already."""
    first, last = (page.rows[0]["id"], page.rows[-1]["id"]) if page.rows else (None, None)
    return ListedWithEnds(data=list(page.rows), has_more=page.has_more, first_id=first, last_id=last)

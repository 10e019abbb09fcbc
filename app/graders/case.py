"""One answer to be graded and the row it belongs to: all that a grader may know. `grade` builds it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.graders import template


@dataclass(frozen=True, slots=True)
class Case:
    """What templates may read: the dataset row's fields and the answer."""

    item: Mapping[str, Any]
    sample: Mapping[str, Any]

    def render(self, text: str) -> str:
        """Return a template filled in. Raises: UnresolvedVariable."""
        return template.parse(text).render(self.item, self.sample)

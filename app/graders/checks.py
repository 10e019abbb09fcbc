"""string_check: exact comparison of two rendered texts. `grade` renders and calls."""

from typing import Literal

Operation = Literal["eq", "ne", "like", "ilike"]


def check(operation: Operation, text: str, reference: str) -> float:
    """Return 1.0 when the comparison holds, else 0.0; `like` asks whether the input contains the reference.

    `like` is no SQL: % and _ are ordinary characters. An empty reference is contained in every text.
    """
    match operation:
        case "eq":
            holds = text == reference
        case "ne":
            holds = text != reference
        case "like":
            holds = reference in text
        case "ilike":
            holds = reference.casefold() in text.casefold()
    return float(holds)

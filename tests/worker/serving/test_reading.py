"""An answer's text told apart, whatever pieces it comes in."""

import json

import pytest

from worker.serving.reading import Part, Reader

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def read(
    text: str, size: int, *, stops: tuple[str, ...] = (), tools: tuple[str, ...] = (), thinking: bool = False
) -> tuple[list[Part], bool]:
    """Read a text in pieces of a size; parts of one kind are put together, calls are not."""
    reader = Reader(stops=stops, tools=tools, thinking=thinking)
    parts: list[Part] = []
    for start in range(0, len(text), size):
        if not reader.stopped:
            parts += reader.feed(text[start : start + size])
    parts += reader.end()
    found: list[Part] = []
    for kind, said in parts:
        if found and found[-1][0] == kind != "call":
            found[-1] = (kind, found[-1][1] + said)
        else:
            found.append((kind, said))
    return found, reader.stopped


def call(**arguments: int) -> Part:
    """Return the part a call becomes."""
    return "call", json.dumps({"name": "f", "arguments": json.dumps(arguments)})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "given", "parts", "stopped"),
    [
        ("plain text", {}, [("content", "plain text")], False),
        ("\n as it is \n", {}, [("content", "\n as it is \n")], False),
        ("a STOP b", {"stops": ("STOP",)}, [("content", "a ")], True),
        ("a STO", {"stops": ("STOP",)}, [("content", "a STO")], False),
        ("STOP", {"stops": ("STOP",)}, [], True),
        ("abab", {"stops": ("ab", "abab")}, [], True),
        ("<think>one two</think>\n\nthree", {}, [("reasoning", "one two"), ("content", "three")], False),
        ("\n<think>one</think>two", {}, [("reasoning", "one"), ("content", "two")], False),
        (
            "one STOP</think>two",
            {"thinking": True, "stops": ("STOP",)},
            [("reasoning", "one STOP"), ("content", "two")],
            False,
        ),
        ("never ends", {"thinking": True}, [("reasoning", "never ends")], False),
        ("a <think>b</think>", {}, [("content", "a <think>b</think>")], False),
        ("1 < 2 and <b>", {}, [("content", "1 < 2 and <b>")], False),
        (CALL, {"tools": ("f",)}, [call(a=1)], False),
        (f"Look: {CALL}\n{CALL}", {"tools": ("f",)}, [("content", "Look: "), call(a=1), call(a=1)], False),
        (CALL, {}, [("content", CALL)], False),
        (CALL, {"tools": ("g",)}, [("content", CALL)], False),
        (CALL[:30], {"tools": ("f",)}, [("content", CALL[:30])], False),
        ('{"name": "f", "parameters": {"a": 2}}', {"tools": ("f",)}, [call(a=2)], False),
        (
            '[{"name": "f", "arguments": {"a": 2}}, {"name": "f"}]',
            {"tools": ("f",)},
            [call(a=2), call()],
            False,
        ),
        ('{"name": "h"}', {"tools": ("f",)}, [("content", '{"name": "h"}')], False),
        ("<think>x</think>\n" + CALL, {"tools": ("f",)}, [("reasoning", "x"), call(a=1)], False),
    ],
)
def test_a_text_is_told_apart(
    text: str, given: dict[str, object], parts: list[Part], stopped: bool, size: int
) -> None:
    assert read(text, size, **given) == (parts, stopped)  # type: ignore[arg-type]

"""A foreign engine on loopback, for tests: what vLLM is to this service, with answers made of the question.

It speaks chat completions, whole and streamed, and loads adapters by name. Its answer is the last message
backwards, a word a piece, so that a test can tell what reached it. Our own engine is never stood in for.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.loopback import listening


@dataclass
class EngineServer:
    """What was asked, and how to behave."""

    port: int = 0
    base: str = "vendor/base"
    # Adapters by name; `None` is an engine that was started without them.
    adapters: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    # Refuse instead: a status with a document, and headers.
    refusal: tuple[int, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    # Seconds before an answer, and between two pieces.
    delay: float = 0.0
    pause: float = 0.0
    # A stream ends with this after so many pieces: an error's document, or bytes that are none.
    breaks: tuple[int, Any] | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    thoughts: str = ""
    says: str | None = None
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def base_url(self) -> str:
        """What stands in providers.toml."""
        return f"http://127.0.0.1:{self.port}/v1"

    def write_providers(self, folder: Path, *models: str, **options: Any) -> None:
        """Name this server in a data folder as the engine of base models."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"name": "foreign", "base_url": self.base_url, "adapters": True} | options
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        named = [f'"{model}" = "{self.base}"' for model in models]
        text = "\n".join(["[[engine]]", *lines, "[engine.models]", *named, ""])
        (folder / "providers.toml").write_text(text)

    def answer(self, asked: dict[str, Any]) -> str:
        """Return what it says to a conversation."""
        if self.says is not None:
            return self.says
        last = asked["messages"][-1]["content"] or ""
        text = last if isinstance(last, str) else "".join(part.get("text", "") for part in last)
        return " ".join(reversed(text.split())) or "nothing"


def words(text: str) -> list[str]:
    """Return the pieces of a text, which joined are the text."""
    parts = text.split(" ")
    return [part if not place else f" {part}" for place, part in enumerate(parts)]


def _choice(server: EngineServer, asked: dict[str, Any]) -> tuple[list[str], str]:
    pieces, ending = words(server.answer(asked)), "stop"
    limit = asked.get("max_completion_tokens")
    if limit is not None and limit < len(pieces):
        pieces, ending = pieces[:limit], "length"
    if server.calls and "tools" in asked:
        return [], "tool_calls"
    return pieces, ending


def _logprobs(asked: dict[str, Any], pieces: Sequence[str]) -> dict[str, Any] | None:
    if not asked.get("logprobs"):
        return None
    top = [{"token": "x", "logprob": float("-inf"), "bytes": [120]}] * asked.get("top_logprobs", 0)
    return {"content": [{"token": one, "logprob": -0.25, "top_logprobs": top} for one in pieces]}


def _usage(asked: dict[str, Any], pieces: Sequence[str]) -> dict[str, Any]:
    prompt = sum(len(str(message["content"]).split()) for message in asked["messages"])
    count = len(pieces) * asked.get("n", 1)
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def _whole(server: EngineServer, asked: dict[str, Any]) -> dict[str, Any]:
    pieces, ending = _choice(server, asked)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(pieces) if pieces else None}
    if ending == "tool_calls":
        message["tool_calls"] = server.calls
    if server.thoughts:
        message["reasoning_content"] = server.thoughts
    choices = [
        {"index": n, "message": message, "logprobs": _logprobs(asked, pieces), "finish_reason": ending}
        for n in range(asked.get("n", 1))
    ]
    return {"id": "theirs", "object": "chat.completion", "choices": choices, "usage": _usage(asked, pieces)}


def _chunks(server: EngineServer, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pieces, ending = _choice(server, asked)

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"id": "theirs", "choices": [{"index": index, "delta": delta, "finish_reason": None} | more]}

    for n in range(asked.get("n", 1)):
        yield chunk(n, {"role": "assistant", "content": ""})
        if server.thoughts:
            yield chunk(n, {"reasoning_content": server.thoughts})
        for piece in pieces:
            yield chunk(n, {"content": piece}, logprobs=_logprobs(asked, [piece]))
        for place, call in enumerate(server.calls if ending == "tool_calls" else ()):
            function = call["function"]
            half = len(function["arguments"]) // 2
            first = {
                **call,
                "index": place,
                "function": {**function, "arguments": function["arguments"][:half]},
            }
            yield chunk(n, {"tool_calls": [first]})
            rest = {"index": place, "function": {"arguments": function["arguments"][half:]}}
            yield chunk(n, {"tool_calls": [rest]})
        yield chunk(n, {}, finish_reason=ending)
    yield {"id": "theirs", "choices": [], "usage": _usage(asked, pieces)}


@contextmanager
def engine_running() -> Iterator[EngineServer]:
    """Run an engine on a free port until the block ends."""
    engine = EngineServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path.endswith("/load_lora_adapter"):
                self._load(asked)
                return
            engine.asked.append(asked)
            engine.keys.append(self.headers.get("authorization"))
            if self._is_left(engine.delay):
                return
            if engine.refusal is not None:
                self._send(*engine.refusal)
            elif asked["model"] not in (engine.base, *engine.adapters):
                self._send(404, {"error": {"message": f"no model {asked['model']}"}})
            elif asked.get("stream"):
                self._stream(asked)
            else:
                self._send(200, _whole(engine, asked))

        def _is_left(self, seconds: float) -> bool:
            """Wait before answering; say whether whoever asked has gone meanwhile."""
            readable, _, _ = select.select([self.connection], [], [], seconds)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                engine.left.set()
                return True
            return False

        def _load(self, asked: dict[str, Any]) -> None:
            engine.loads.append(asked["lora_name"])
            if asked["lora_name"] in engine.adapters:
                told = f"The lora adapter '{asked['lora_name']}' has already been loaded."
                self._send(400, {"error": {"message": told}})
            elif not Path(asked["lora_path"]).is_dir():
                self._send(404, {"error": {"message": "no such adapter"}})
            else:
                engine.adapters[asked["lora_name"]] = asked["lora_path"]
                self._send(200, {"message": "Success"})

        def _stream(self, asked: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.close_connection = True
            try:
                for place, chunk in enumerate(_chunks(engine, asked)):
                    if engine.breaks is not None and place == engine.breaks[0]:
                        said = engine.breaks[1]
                        self.wfile.write(said if isinstance(said, bytes) else _line(said))
                        return
                    self.wfile.write(_line(chunk))
                    time.sleep(engine.pause)
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                engine.left.set()

        def _send(self, status: int, document: Any) -> None:
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            with suppress(OSError):
                self.send_response(status)
                for name, value in engine.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as engine.port:
        yield engine


def _line(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"

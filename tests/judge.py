"""A real judge on loopback, for tests: an OpenAI-compatible server that answers what it is told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.loopback import listening

USAGE = {
    "prompt_tokens": 190,
    "completion_tokens": 134,
    "total_tokens": 324,
    "prompt_tokens_details": {"cached_tokens": 64},
}


def says(content: str | None, *, refusal: str | None = None, ending: str = "stop") -> dict[str, Any]:
    """Return a chat completion that says `content`."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": ending}
    return {"object": "chat.completion", "model": "judge-snapshot", "choices": [choice], "usage": USAGE}


def scores(result: Any) -> dict[str, Any]:
    """Return a chat completion that gives a result in the form judges are asked for."""
    return says(json.dumps({"steps": [{"description": "read", "conclusion": "good"}], "result": result}))


@dataclass
class JudgeServer:
    """What was asked, and what to answer: each (status, document) once, then the last one for ever."""

    port: int = 0
    answers: list[tuple[int, Any]] = field(default_factory=lambda: [(200, scores(0.75))])
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    answer_to: Callable[[dict[str, Any]], Any] | None = None
    delay: float = 0.0
    # Connections are dropped without an answer, as by a server that was killed.
    down: bool = False
    at_once: int = 0
    most_at_once: int = 0
    dead: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base_url(self) -> str:
        """What stands in providers.toml."""
        return f"http://127.0.0.1:{self.port}/v1"

    def write_providers(self, folder: Path, **options: Any) -> None:
        """Name this server as the judge `gpt-judge` in a data folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"name": "local", "base_url": self.base_url, "backoff_seconds": 0.001} | options
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        text = "[[provider]]\n" + "\n".join(lines) + '\n[provider.models]\n"gpt-judge" = "judge-8b"\n'
        (folder / "providers.toml").write_text(text)


@contextmanager
def judging() -> Iterator[JudgeServer]:
    """Run a judge on a free port until the block ends."""
    judge = JudgeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if judge.down:
                self.close_connection = True
                return
            if judge.dead:
                self.close_connection = True
                return
            with judge.lock:
                judge.asked.append({"path": self.path, **request})
                judge.keys.append(self.headers.get("authorization"))
                judge.at_once += 1
                judge.most_at_once = max(judge.most_at_once, judge.at_once)
                status, document = judge.answers.pop(0) if len(judge.answers) > 1 else judge.answers[0]
            if judge.answer_to is not None:
                status, document = 200, judge.answer_to(request)
            threading.Event().wait(judge.delay)
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            with judge.lock:
                judge.at_once -= 1
            self.send_response(status)
            for name, value in judge.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as judge.port:
        try:
            yield judge
        finally:
            # Connections that are kept open outlive the server's socket: as after a kill, they get no answer.
            judge.dead = True

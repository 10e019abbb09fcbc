"""Serving beside transformers and vLLM: speed, first tokens, adapters in a batch, memory, a job beside it.

`python -m tests.bench.serve` starts a real inference process on a throw-away data folder with the default
model and prints a line for each figure. It exits non-zero when a *claim* fails: greedy answers that differ
from those of transformers where the model is not undecided, the sharing of the machine with a job, or what
vLLM answers in our process's place (`serve_vllm.py`). Speeds are printed only.
"""

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.bench.serve_process import ADAPTERS, MODEL, Inference, peak, store
from tests.bench.serve_vllm import NAME, Vllm, drive

TOKENS = 48
STREAMS = (1, 8, 32)
PROMPTS = 50
PROMPT_TOKENS = 32
# Where the two likeliest tokens are so close, rounding decides.
UNDECIDED = 1e-3
FIRST_TOKEN_SECONDS = 3.0
SLOWDOWN = 0.25
# Of equal length on both sides: no answer ends by itself.
ENDLESS = {"logit_bias": {"2": -100}, "temperature": 0}
QUESTIONS = [f"Tell me about the number {n} and what it is known for." for n in range(64)]


@dataclass
class Stream:
    """What one client saw. Units: seconds since it asked."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    text: str = ""
    arrivals: list[float] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, model: str, text: str, most: int = TOKENS, **body: Any) -> Stream:
    """Stream one completion and note when it came."""
    found, started = Stream(), time.perf_counter()
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": most,
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            said = json.loads(line.removeprefix("data: "))
            if "error" in said:
                raise RuntimeError(said["error"]["message"])
            if said["choices"] and said["choices"][0]["delta"].get("content"):
                found.first = found.first or time.perf_counter() - started
                found.text += said["choices"][0]["delta"]["content"]
            if said.get("usage"):
                found.tokens = said["usage"]["completion_tokens"]
    found.last = time.perf_counter() - started
    return found


async def together(
    engine: Inference | Vllm, models: Sequence[str], **body: Any
) -> tuple[float, list[Stream]]:
    """Ask each model once, all at the same time; return the seconds it took and what was seen."""
    async with engine.client() as client:
        started = time.perf_counter()
        streams = await asyncio.gather(
            *(ask(client, model, QUESTIONS[place], **body) for place, model in enumerate(models))
        )
        return time.perf_counter() - started, list(streams)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def speed(inference: Inference, peer: "Peer", vllm: Vllm | None) -> None:
    """Print all sides' tokens a second, in turn, at each number of streams."""
    for count in STREAMS:
        ours, theirs, other = Pace(), [], Pace()
        for _ in range(2):
            ours.take(asyncio.run(together(inference, [MODEL] * count, **ENDLESS)))
            theirs.append(peer.speed(count))
            if vllm is not None:
                other.take(asyncio.run(together(vllm, [NAME] * count, **ENDLESS)))
        us, them = max(ours.speeds), max(theirs)
        beside = ""
        if vllm is not None:
            beside = f" vllm_tokens_per_s={max(other.speeds):.1f} {other.first('vllm_')}"
        print(
            f"SERVE streams={count} ours_tokens_per_s={us:.1f} transformers_tokens_per_s={them:.1f} "
            f"ratio={us / them:.2f} {ours.first()}{beside}",
            flush=True,
        )


@dataclass
class Pace:
    """Tokens a second of each round, and the seconds to every first token."""

    speeds: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    def take(self, round_: tuple[float, list[Stream]]) -> None:
        """Note a round."""
        seconds, streams = round_
        self.speeds.append(sum(stream.tokens for stream in streams) / seconds)
        self.firsts += [stream.first for stream in streams]

    def first(self, whose: str = "") -> str:
        """Return the figures of first tokens, as they are printed."""
        return (
            f"{whose}first_token_p50={quantile(self.firsts, 0.5):.2f} "
            f"{whose}first_token_p95={quantile(self.firsts, 0.95):.2f}"
        )


def adapters(inference: Inference) -> None:
    """Print what eight different adapters in a batch cost against one, and against the base."""
    kinds = {"base": [MODEL] * 8, "one": [ADAPTERS[0]] * 8, "eight": list(ADAPTERS)}
    for models in kinds.values():  # loaded, and their stacks made
        asyncio.run(together(inference, models, **ENDLESS, most=2))
    best: dict[str, float] = {}
    for _ in range(2):
        for name, models in kinds.items():
            seconds, _ = asyncio.run(together(inference, models, **ENDLESS))
            best[name] = min(seconds, best.get(name, seconds))
    print(
        f"ADAPTERS streams=8 base_s={best['base']:.2f} one_s={best['one']:.2f} eight_s={best['eight']:.2f} "
        f"eight_over_one={best['eight'] / best['one']:.2f}",
        flush=True,
    )


def exact(inference: Inference, peer: "Peer") -> int:
    """Print how many greedy answers are those of transformers, and where the others part from them."""
    prompts = QUESTIONS[:PROMPTS]
    texts: list[str] = []
    for start in range(0, PROMPTS, 10):

        async def ten(part: Sequence[str]) -> list[Stream]:
            async with inference.client() as client:
                return list(
                    await asyncio.gather(*(ask(client, MODEL, t, PROMPT_TOKENS, temperature=0) for t in part))
                )

        texts += [stream.text for stream in asyncio.run(ten(prompts[start : start + 10]))]
    equal, undecided, gaps = peer.compare(prompts, texts)
    wrong = PROMPTS - equal - undecided
    print(
        f"GREEDY prompts={PROMPTS} equal={equal} undecided={undecided} wrong={wrong} gaps={gaps}", flush=True
    )
    return int(wrong > 0)


class Peer:
    """transformers' own generation, in a process of its own that is asked for one thing after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-W", "ignore", "-m", "tests.bench.serve_peer", str(store() / MODEL)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def speed(self, count: int) -> float:
        """Return its tokens a second for so many prompts in one batch."""
        return float(self._ask(do="speed", prompts=QUESTIONS[:count], tokens=TOKENS))

    def compare(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[int, int, list[float]]:
        """Return how many texts are its own, how many part where it is undecided, and the gaps there."""
        asked = {"do": "compare", "prompts": list(prompts), "texts": list(texts), "tokens": PROMPT_TOKENS}
        found = self._ask(**asked, undecided=UNDECIDED)
        return found["equal"], found["undecided"], found["gaps"]

    def peak(self) -> float:
        """Return the most memory it ever held, in MB."""
        return peak((self._process.pid,))

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def sharing(inference: Inference) -> int:
    """Print what a chat a second costs a job on the same machine, and how long its first token takes."""

    async def chat(ended: asyncio.Event) -> list[Stream]:
        async with inference.client() as client:
            tasks = []
            while not ended.is_set():
                tasks.append(asyncio.create_task(ask(client, MODEL, QUESTIONS[len(tasks) % 64], 12)))
                await asyncio.sleep(1.0)
            return list(await asyncio.gather(*tasks))

    async def beside() -> tuple[float, list[Stream]]:
        ended = asyncio.Event()
        chats = asyncio.create_task(chat(ended))
        seconds = await asyncio.to_thread(inference.job_step)
        ended.set()
        return seconds, await chats

    with inference.training():
        inference.job_step()
        alone, shared, streams = [], [], []
        for _ in range(2):
            alone.append(inference.job_step())
            seconds, seen = asyncio.run(beside())
            shared.append(seconds)
            streams += seen
    cost = statistics.median(shared) / statistics.median(alone) - 1
    first = [stream.first for stream in streams]
    print(
        f"SHARING step_alone_s={statistics.median(alone):.1f} "
        f"step_with_chats_s={statistics.median(shared):.1f} "
        f"job_slower={cost:.0%} chats={len(streams)} first_token_p50={quantile(first, 0.5):.2f} "
        f"first_token_p95={quantile(first, 0.95):.2f}",
        flush=True,
    )
    return int(cost > SLOWDOWN or quantile(first, 0.5) > FIRST_TOKEN_SECONDS)


def main() -> int:
    """Print every figure; return the exit code."""
    parser = argparse.ArgumentParser()
    parts = ("exact", "speed", "adapters", "sharing", "vllm")
    parser.add_argument("--only", choices=parts, help="one part alone")
    only = parser.parse_args().only
    # An end from outside ends the processes too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    wanted = {only} if only else set(parts)
    failed = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunesmith-serve-")))
        inference = stack.enter_context(Inference(folder))
        vllm = None
        if wanted & {"speed", "vllm"}:
            vllm = stack.enter_context(Vllm(folder / "vllm.log"))
        if wanted & {"exact", "speed"}:
            peer = Peer()
            if "exact" in wanted:
                failed |= exact(inference, peer)
            if "speed" in wanted:
                speed(inference, peer, vllm)
            print(f"MEMORY transformers_peak_mb={peer.peak():.0f}", flush=True)
            peer.end()
        if "adapters" in wanted:
            adapters(inference)
        print(f"MEMORY ours_peak_mb={peak((inference.pid,)):.0f}", flush=True)
        if vllm is not None:
            print(f"MEMORY vllm_peak_mb={vllm.peak():.0f}", flush=True)
        if vllm is not None and "vllm" in wanted:
            failed |= bool(drive(inference, vllm))
            vllm.kill()
        if "sharing" in wanted:
            failed |= sharing(inference)
    return failed


if __name__ == "__main__":
    sys.exit(main())

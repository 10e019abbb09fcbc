"""Serving beside transformers and vLLM: speed, first tokens, adapters in a batch, memory, a job beside it.

`python -m tests.bench.serve` starts a real inference process on a throw-away data folder with the default
model and prints a line for each figure. It exits non-zero when a *claim* fails: greedy answers that differ
from those of transformers where the model is not undecided, prompts of the speeds that were known or not the
same on every side, the sharing of the machine with a job, or what vLLM answers in our process's place
(`serve_vllm.py`). Speeds are printed only.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.bench.serve_process import ADAPTERS, MODEL, UNDECIDED, Inference, peak, store
from tests.bench.serve_vllm import NAME, Vllm, drive

TOKENS = 48
STREAMS = (1, 8, 32)
ROUNDS = 2
PROMPTS = 50
PROMPT_TOKENS = 32
FIRST_TOKEN_SECONDS = 3.0
SLOWDOWN = 0.25
VISITS = 4
CHAT_TOKENS = 12
STIR_TOKENS = 8
# Of equal length on every side: no answer ends by itself.
ENDLESS = {"logit_bias": {"2": -100}, "temperature": 0}
QUESTIONS = [f"Tell me about the number {n} and what it is known for." for n in range(PROMPTS)]
SHORT = "is a number. Tell me about it and what it is known for."
LONG = (
    f"is my number. {' '.join(f'On day {n} I counted {n + 9} birds.' for n in range(1, 48))} How many in all?"
)
# What the model's chat template puts before the first question, every time.
TEMPLATE_TOKENS = 24
# A question begins with a number of its own, a token a digit, of which it may share all but one with another.
_DIGITS = 6
MOST_CACHED = TEMPLATE_TOKENS + _DIGITS - 1
_numbers = iter(random.Random(0).sample(range(10 ** (_DIGITS - 1), 10**_DIGITS), 10_000))


def unheard(count: int, rest: str = SHORT) -> list[str]:
    """Return questions that this run has not asked before, all of as many tokens."""
    return [f"{next(_numbers)} {rest}" for _ in range(count)]


@dataclass
class Stream:
    """What one client saw: seconds from the question to the first content, tokens of the usage, the text."""

    first: float = 0.0
    prompt: int = 0
    cached: int = 0
    tokens: int = 0
    text: str = ""


async def ask(client: httpx.AsyncClient, model: str, text: str, most: int = TOKENS, **body: Any) -> Stream:
    """Stream one completion and note when it came. Raises: RuntimeError on an error, or without content."""
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
            if usage := said.get("usage"):
                found.prompt, found.tokens = usage["prompt_tokens"], usage["completion_tokens"]
                found.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    if not found.text:
        raise RuntimeError(f"a stream of {model} without content")
    return found


async def together(
    engine: Inference | Vllm, models: Sequence[str], texts: Sequence[str], **body: Any
) -> tuple[float, list[Stream]]:
    """Ask each model its text, all at the same time; return the seconds it took and what was seen."""
    async with engine.client() as client:
        started = time.perf_counter()
        streams = await asyncio.gather(
            *(ask(client, model, text, **body) for model, text in zip(models, texts, strict=True))
        )
        return time.perf_counter() - started, list(streams)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def known(streams: Iterable[Stream]) -> list[str]:
    """Return what is wrong where more than the template was known of a prompt."""
    most = max(stream.cached for stream in streams)
    return [f"{most} tokens of a prompt were cached"] if most > MOST_CACHED else []


@dataclass
class Pace:
    """What one engine did in the rounds that count: tokens a second of each, and every stream."""

    speeds: list[float] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def take(self, seconds: float, streams: Sequence[Stream]) -> None:
        """Note a round."""
        self.speeds.append(sum(stream.tokens for stream in streams) / seconds)
        self.streams += streams

    def told(self, whose: str = "") -> str:
        """Return the figures of prompts and first tokens, as they are printed."""
        first = [stream.first for stream in self.streams]
        return (
            f"{whose}cached_tokens={max(stream.cached for stream in self.streams)} "
            f"{whose}first_token_p50={quantile(first, 0.5):.2f} "
            f"{whose}first_token_p95={quantile(first, 0.95):.2f}"
        )


def speed(inference: Inference, peer: "Peer", vllm: Vllm) -> list[str]:
    """Print all sides' tokens a second, in turn, at each number of streams; return what is wrong.

    Each round's texts are new and the same on every side. A first round warms up and does not count.
    """
    problems = []
    for count in STREAMS:
        ours, theirs, other = Pace(), [], Pace()
        for turn in range(ROUNDS + 1):
            texts = unheard(count)
            # Each says a few words first: what rested while the others worked must find its memory again.
            asyncio.run(together(inference, [MODEL], unheard(1), most=STIR_TOKENS, **ENDLESS))
            mine = asyncio.run(together(inference, [MODEL] * count, texts, **ENDLESS))
            peer.speed(unheard(1), STIR_TOKENS)
            generated, length = peer.speed(texts)
            asyncio.run(together(vllm, [NAME], unheard(1), most=STIR_TOKENS, **ENDLESS))
            servers = asyncio.run(together(vllm, [NAME] * count, texts, **ENDLESS))
            streams = [*mine[1], *servers[1]]
            problems += known(streams)
            if (lengths := {length, *(stream.prompt for stream in streams)}) != {length}:
                problems.append(f"prompts of {sorted(lengths)} tokens in one round")
            if turn:
                ours.take(*mine)
                theirs.append(generated)
                other.take(*servers)
        us, them = max(ours.speeds), max(theirs)
        print(
            f"SERVE streams={count} prompt_tokens={length} template_tokens={TEMPLATE_TOKENS} "
            f"ours_tokens_per_s={us:.1f} transformers_tokens_per_s={them:.1f} ratio={us / them:.2f} "
            f"{ours.told()} vllm_tokens_per_s={max(other.speeds):.1f} {other.told('vllm_')} "
            f"problems={problems}",
            flush=True,
        )
    return problems


def adapters(inference: Inference) -> None:
    """Print what eight different adapters in a batch cost against one, and against the base."""
    kinds = {"base": [MODEL] * 8, "one": [ADAPTERS[0]] * 8, "eight": list(ADAPTERS)}
    for models in kinds.values():  # loaded, and their stacks made
        asyncio.run(together(inference, models, unheard(8), **ENDLESS, most=2))
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, models in kinds.items():
            seconds, _ = asyncio.run(together(inference, models, unheard(8), **ENDLESS))
            best[name] = min(seconds, best.get(name, seconds))
    print(
        f"ADAPTERS streams=8 base_s={best['base']:.2f} one_s={best['one']:.2f} eight_s={best['eight']:.2f} "
        f"eight_over_one={best['eight'] / best['one']:.2f}",
        flush=True,
    )


async def staggered(inference: Inference, models: Sequence[str]) -> tuple[float, int]:
    """Have eight clients ask one question after another; return the seconds it took, and all tokens.

    Each goes from model to model, and its answers are of other lengths than its neighbours': rows leave and
    join one by one, and the models among them change with most of them.
    """
    draw = random.Random(1)
    lengths = [[draw.randrange(8, TOKENS) for _ in range(VISITS)] for _ in range(8)]

    async def visit(client: httpx.AsyncClient, number: int) -> int:
        tokens = 0
        for turn, (text, most) in enumerate(zip(unheard(VISITS), lengths[number], strict=True)):
            model = models[(number + turn) % len(models)]
            tokens += (await ask(client, model, text, most, **ENDLESS)).tokens
        return tokens

    async with inference.client() as client:
        started = time.perf_counter()
        tokens = await asyncio.gather(*(visit(client, number) for number in range(8)))
        return time.perf_counter() - started, sum(tokens)


def adapters_staggered(inference: Inference) -> None:
    """Print what eight adapters whose rows join and leave cost against the same requests with one."""
    kinds = {"one": [ADAPTERS[0]] * len(ADAPTERS), "eight": ADAPTERS}
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, models in kinds.items():
            seconds, tokens = asyncio.run(staggered(inference, models))
            best[name] = min(seconds, best.get(name, seconds))
    print(
        f"ADAPTERS_STAGGERED clients=8 requests={8 * VISITS} tokens={tokens} one_s={best['one']:.2f} "
        f"eight_s={best['eight']:.2f} eight_over_one={best['eight'] / best['one']:.2f}",
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
    """transformers' own generation, for a `with` block: a process asked for one thing after another."""

    def __enter__(self) -> "Peer":
        self._process = subprocess.Popen(
            (sys.executable, "-W", "ignore", "-m", "tests.bench.serve_peer", str(store() / MODEL)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def speed(self, prompts: Sequence[str], tokens: int = TOKENS) -> tuple[float, int]:
        """Return its tokens a second for prompts in one batch, and the tokens of the longest prompt."""
        speed, length = self._ask(do="speed", prompts=list(prompts), tokens=tokens)
        return speed, length

    def compare(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[int, int, list[float]]:
        """Return how many texts are its own, how many part where it is undecided, and the gaps there."""
        asked = {"do": "compare", "prompts": list(prompts), "texts": list(texts), "tokens": PROMPT_TOKENS}
        found = self._ask(**asked, undecided=UNDECIDED)
        return found["equal"], found["undecided"], found["gaps"]

    def peak(self) -> float:
        """Return the most memory it ever held, in MB."""
        return peak((self._process.pid,))


def problems_of(cost: float, chats: Sequence[Stream]) -> list[str]:
    """Return what is wrong with a job that chats made slower by this share, and with the chats beside it."""
    problems = []
    if cost > SLOWDOWN:
        problems.append(f"the job is slower by {cost:.0%}")
    if (late := quantile([chat.first for chat in chats], 0.95)) > FIRST_TOKEN_SECONDS:
        problems.append(f"one first token in twenty takes {late:.2f} s or longer")
    return problems


def sharing(inference: Inference) -> list[str]:
    """Print what a chat a second costs a job on the same machine, and how long its first token takes.

    Whoever begins has credit, so the step that chats begin with is not the one that counts. How long a prompt
    of hundreds of tokens takes is told apart. None was read before. Returns what is wrong.
    """

    async def chat(ended: asyncio.Event) -> list[Stream]:
        async with inference.client() as client:
            tasks: list[asyncio.Task[Stream]] = []
            while not ended.is_set():
                (text,) = unheard(1)
                tasks.append(asyncio.create_task(ask(client, MODEL, text, CHAT_TOKENS, **ENDLESS)))
                await asyncio.sleep(1.0)
            return list(await asyncio.gather(*tasks))

    async def beside() -> tuple[float, float, list[Stream]]:
        ended = asyncio.Event()
        chats = asyncio.create_task(chat(ended))
        begun = await asyncio.to_thread(inference.job_step)
        seconds = await asyncio.to_thread(inference.job_step)
        ended.set()
        return begun, seconds, await chats

    async def long() -> Stream:
        async with inference.client() as client:
            step = asyncio.create_task(asyncio.to_thread(inference.job_step))
            await asyncio.sleep(1.0)
            found = await ask(client, MODEL, *unheard(1, LONG), CHAT_TOKENS, **ENDLESS)
            await step
            return found

    with inference.training():
        inference.job_step()
        alone, begun, shared, late = [], [], [], []
        chats: list[Stream] = []
        for _ in range(ROUNDS):
            alone.append(inference.job_step())
            late.append(asyncio.run(long()))
            inference.job_step()
            first, second, seen = asyncio.run(beside())
            begun.append(first)
            shared.append(second)
            chats += seen
    usual = statistics.median(alone)
    cost = statistics.median(shared) / usual - 1
    firsts = [stream.first for stream in chats]
    problems = known([*chats, *late]) + problems_of(cost, chats)
    print(
        f"SHARING step_alone_s={usual:.1f} step_with_chats_s={statistics.median(shared):.1f} "
        f"job_slower={cost:.0%} as_chats_begin={statistics.median(begun) / usual - 1:.0%} "
        f"chats={len(chats)} first_token_p50={quantile(firsts, 0.5):.2f} "
        f"first_token_p95={quantile(firsts, 0.95):.2f} long_prompt_tokens={late[0].prompt} "
        f"long_first_token_s={' '.join(f'{stream.first:.2f}' for stream in late)} "
        f"cached_tokens={max(stream.cached for stream in chats)} problems={problems}",
        flush=True,
    )
    return problems


def main() -> int:
    """Print every figure; return the exit code."""
    parser = argparse.ArgumentParser()
    parts = ("exact", "speed", "adapters", "sharing", "vllm")
    parser.add_argument("--only", choices=parts, help="one part alone")
    only = parser.parse_args().only
    # An end from outside ends the processes too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    wanted = {only} if only else set(parts)
    failed = False
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunesmith-serve-")))
        inference = stack.enter_context(Inference(folder))
        if wanted & {"exact", "speed"}:
            with Peer() as peer:
                if "exact" in wanted:
                    failed |= bool(exact(inference, peer))
                if "speed" in wanted:
                    with Vllm(folder / "vllm-base.log", adapters=0) as vllm:
                        failed |= bool(speed(inference, peer, vllm))
                        print(vllm.memory(), flush=True)
                print(
                    f"MEMORY adapters=0 ours_peak_mb={inference.peak():.0f} "
                    f"transformers_peak_mb={peer.peak():.0f}",
                    flush=True,
                )
        if "adapters" in wanted:
            adapters(inference)
            adapters_staggered(inference)
            print(f"MEMORY adapters={len(ADAPTERS)} ours_peak_mb={inference.peak():.0f}", flush=True)
        if "vllm" in wanted:
            with Vllm(folder / "vllm-adapters.log", adapters=len(ADAPTERS)) as vllm:
                failed |= bool(drive(inference, vllm))
        if "sharing" in wanted:
            failed |= bool(sharing(inference))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

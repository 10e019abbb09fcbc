"""Models come and go, memory is bounded, the queue too, and a client that leaves frees its row."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.serving.conftest import TUNED, Served, Serving, add_model


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for what is bound to come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def ask(served: Served, count: int, **body: Any) -> list[httpx.Response]:
    """Ask for many completions at once."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **body}
    found: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: found.append(served.post("/v1/chat/completions", asked)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def loaded(served: Served) -> dict[str, list[str]]:
    """Return the base models in memory with their adapters."""
    return {one["id"]: one["adapters"] for one in served.client.get("/v1/models").json()["data"]}


def rows(served: Served) -> int:
    """Return how many answers are under way."""
    return sum(one["rows"] for one in served.client.get("/v1/models").json()["data"])


def test_a_share_of_the_time_is_left_to_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=rests.append)
    monkeypatch.setattr("worker.serving.house.time", clock)
    served.chat(max_tokens=4)
    assert rests == []
    monkeypatch.setattr(served.house, "_share", lambda: 0.25)
    began = time.monotonic()
    served.chat(max_tokens=4)
    # Three times as long as the turns took.
    assert 0 < sum(rests) < 3 * (time.monotonic() - began)


def test_models_are_loaded_when_asked_for_and_let_go(served: Served) -> None:
    assert served.post("/v1/models/load", {"model": TUNED[0]}).json() == {"id": TUNED[0], "loaded": True}
    served.chat(model=TUNED[0], max_tokens=2)
    assert TUNED[0] in loaded(served)["tiny"]
    assert served.post("/v1/models/unload", {"model": TUNED[0]}).json()["unloaded"] is True
    assert TUNED[0] not in loaded(served)["tiny"]
    assert served.post("/v1/models/unload", {"model": TUNED[0]}).json()["unloaded"] is False
    served.chat(model=TUNED[0], max_tokens=2)
    assert served.post("/v1/models/unload", {"model": "tiny"}).json()["unloaded"] is True
    assert "tiny" not in loaded(served)
    health = served.client.get("/health").json()
    assert (health["status"], health["waiting"]) == ("ok", 0)
    served.chat(model=TUNED[0], max_tokens=2)


def test_what_was_unloaded_gives_its_memory_back(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        served.chat(max_tokens=2, response_format={"type": "json_object"})
        (base,) = served.house._bases.values()
        policy = weakref.ref(base.policy)
        del base
        served.post("/v1/models/unload", {"model": "tiny"})

        def is_gone() -> bool:
            gc.collect()
            return policy() is None

        until(is_gone)


def test_a_client_that_goes_away_frees_its_row(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.chat(max_tokens=2)
    turn = served.house._turn

    def slow_turn(*asked: Any) -> bool:
        time.sleep(0.01)  # four thousand tokens take their time then, on any machine
        return turn(*asked)

    monkeypatch.setattr(served.house, "_turn", slow_turn)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "logit_bias": {"0": -100}}
    with served.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        next(answer.iter_lines())
        assert rows(served) == 1
    until(lambda: not rows(served))
    socket = str(served.context.settings.inference_socket)
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=0.3) as impatient:
        try:
            impatient.post("http://inference/v1/chat/completions", json=body)
        except httpx.ReadTimeout:
            pass
        else:
            raise AssertionError("four thousand tokens came within a third of a second")
    until(lambda: not rows(served))


def test_what_nobody_uses_is_unloaded_and_loaded_again(tmp_path: Path) -> None:
    with Serving(tmp_path, idle_seconds=0.5) as served:
        before = served.text(model=TUNED[0], seed=1, max_tokens=10)
        until(lambda: not loaded(served))
        assert served.text(model=TUNED[0], seed=1, max_tokens=10) == before


def test_beyond_the_queue_is_a_429_and_within_it_everyone_is_answered(tmp_path: Path) -> None:
    with Serving(tmp_path, waiting=4, rows=1) as served:
        served.chat(max_tokens=1)
        answers = ask(served, 12, max_tokens=40, logit_bias={"0": -100})
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
                assert int(answer.headers["retry-after"]) > 0
        assert served.chat(max_tokens=1)["choices"]


def test_short_memory_makes_rows_wait_and_changes_no_answer(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        body = {"n": 6, "seed": 8, "max_tokens": 150, "logit_bias": {"0": -100}}
        roomy = [choice["message"]["content"] for choice in served.chat("a " * 60, **body)["choices"]]
        (base,) = served.house._bases.values()
        # Room for two rows of this length, so that they have to take turns.
        token_bytes = 2 * 2 * 2 * 16 * 4
        tight = base.weights + 2 * 400 * token_bytes
        served.house.limits = type(served.house.limits)(tight, 64, 8, 600.0)
        returned: list[int] = []
        rejoin = base.batch._decoder.rejoin

        def watched(rows: Any) -> None:
            rejoin(rows)
            returned.append(len(base.batch._decoder.rows))

        base.batch._decoder.rejoin = watched  # type: ignore[method-assign]
        short = [choice["message"]["content"] for choice in served.chat("a " * 60, **body)["choices"]]
        assert short == roomy
        assert len(returned) >= 3
        assert max(returned) <= 3


def test_a_model_too_large_for_the_memory_is_a_503_that_names_the_setting(tmp_path: Path) -> None:
    with Serving(tmp_path, memory=1000) as served:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
        answer = served.post("/v1/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_too_large")
        assert "TUNESMITH_INFERENCE_MEMORY_BYTES" in answer.json()["error"]["message"]


def test_one_model_makes_room_for_another(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        served.chat(max_tokens=1)
        (base,) = served.house._bases.values()
        served.house.limits = type(served.house.limits)(int(base.weights * 1.5), 64, 8, 600.0)
        served.chat(model="thinker", max_tokens=1)
        assert set(loaded(served)) == {"thinker"}
        served.chat(max_tokens=1)
        assert set(loaded(served)) == {"tiny"}


def test_a_damaged_adapter_hurts_nobody_else(served: Served) -> None:
    storage = served.context.storage
    for name, spoil in (("nan", float("nan")), ("shape", None)):
        folder = storage.path(f"jobs/{name}")
        folder.mkdir(parents=True)
        source = storage.path(f"jobs/{TUNED[0].rpartition(':')[2]}")
        (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        tensors = load_file(source / "adapter_model.safetensors")
        if spoil is None:
            tensors = {key: tensor[:, :3].contiguous() for key, tensor in tensors.items()}
        else:
            tensors = {key: torch.full_like(tensor, spoil) for key, tensor in tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        add_model(served.context, f"ft:tiny:personal::{name}", "tiny", f"jobs/{name}")
        body = {"model": f"ft:tiny:personal::{name}", "messages": [{"role": "user", "content": "a"}]}
        answer = served.post("/v1/chat/completions", body)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] in ("model_not_loadable", "model_not_finite")
    served.chat(max_tokens=2)

"""Models come and go, memory is bounded, the queue too, and a client that leaves frees its row."""

import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import build_tiny_model
from tests.worker.serving.conftest import TUNED, Served, Serving, add_model
from worker.engine.errors import NonFinite
from worker.serving import house


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


def base_of(served: Served, name: str = "tiny") -> house.Base:
    """Return a base model that is in memory."""
    return served.house._bases[name]


def limit_memory(served: Served, nbytes: int) -> None:
    """Let the process have so many bytes from now on."""
    served.house.limits = replace(served.house.limits, memory=nbytes)


def watch_memory(served: Served) -> list[int]:
    """Return a list that will hold what was taken after each turn."""
    taken: list[int] = []
    turn = served.house._turn

    def watched(*asked: Any) -> bool:
        worked = turn(*asked)
        taken.append(served.house._taken())
        return worked

    served.house._turn = watched  # type: ignore[method-assign]
    return taken


def test_a_share_of_the_time_is_left_to_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.chat(max_tokens=1)
    now, rests, took = [0.0], list[float](), list[float]()
    turn, wait = served.house._turn, served.house._wait

    def turn_of_a_second(*asked: Any) -> bool:
        worked = turn(*asked)
        if worked:
            took.append(1.0)
            now[0] += 1
        return worked

    def rest(seconds: float, *, firm: bool) -> None:
        if seconds == house._SWEEP_SECONDS:
            wait(seconds, firm=firm)
        elif seconds:
            rests.append(seconds)
            served.house._pace.rested(seconds)

    clock = SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: now[0])
    monkeypatch.setattr(house, "time", clock)
    monkeypatch.setattr(served.house, "_turn", turn_of_a_second)
    monkeypatch.setattr(served.house, "_wait", rest)
    served.chat(max_tokens=4)
    # Followed between turns: the last one, whose token was told while it lasted, is over then.
    served.post("/v1/models/unload", {"model": "nothing"})
    assert rests == []
    took.clear()
    monkeypatch.setattr(served.house, "_share", lambda: 0.25)
    served.chat(max_tokens=4, logit_bias={"0": -100})
    until(lambda: len(rests) == len(took) > 2)
    assert set(rests) == {3.0}


def test_a_rest_ends_when_somebody_asks(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.chat(max_tokens=1)
    pace = served.house._pace
    monkeypatch.setattr(served.house, "_share", lambda: 0.5)
    monkeypatch.setattr(pace, "rest", lambda *_, **__: 1000.0)
    for _ in range(2):
        served.chat(max_tokens=1)
    pace.owed = 0.0


def test_models_are_loaded_when_asked_for_and_let_go(served: Served) -> None:
    assert served.post("/v1/models/load", {"model": TUNED[0]}).json() == {"id": TUNED[0], "loaded": True}
    (told,) = [one for one in served.client.get("/health").json()["models"] if one["id"] == "tiny"]
    assert TUNED[0] in told["adapters"]
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
        lines = answer.iter_lines()  # held: letting go of it would end the connection
        next(lines)
        until(lambda: rows(served) == 1)
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
        assert "retry-after" not in answer.headers
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
    for name, spoil in (("nan", float("nan")), ("shape", None), ("cut", 1.0), ("rank", 2.0)):
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
        if name == "cut":
            os.truncate(folder / "adapter_model.safetensors", 2000)
        if name == "rank":
            config = folder / "adapter_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 0}))
        add_model(served.context, f"ft:tiny:personal::{name}", "tiny", f"jobs/{name}")
        body = {"model": f"ft:tiny:personal::{name}", "messages": [{"role": "user", "content": "a"}]}
        answer = served.post("/v1/chat/completions", body)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] in ("model_not_loadable", "model_not_finite")
        assert "retry-after" not in answer.headers
        if name == "cut":
            answer = served.post("/v1/models/load", {"model": body["model"]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loadable")
    served.chat(max_tokens=2)


def test_a_damaged_base_model_is_a_503_that_says_so(served: Served) -> None:
    folder = build_tiny_model(served.context.settings.models / "broken")
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    add_model(served.context, "broken", "broken", None)
    answer = served.post("/v1/models/load", {"model": "broken"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loadable")
    assert "retry-after" not in answer.headers


def test_what_was_read_of_a_prompt_is_kept_once_its_numbers_are_known(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.chat(max_tokens=1)
    text = "a prompt that nobody else has asked " * 4
    decoder = base_of(served).batch._decoder

    def spoilt(*_: Any) -> None:
        raise NonFinite("spoilt by its company")

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "join", spoilt)
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
        answer = served.post("/v1/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_finite")
    again = served.chat(text, max_tokens=1)["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] < 40
    assert served.chat(text, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


def test_a_thread_that_loaded_a_model_ends(served: Served) -> None:
    """Else OpenMP counts its team too, and the decode thread's sleeps at every small product."""
    served.chat(max_tokens=1)
    for thread in threading.enumerate():
        if thread.name.startswith("load"):
            thread.join(30)
            assert not thread.is_alive()


def test_what_nobody_foresaw_ends_the_process_and_every_request(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        served.chat(max_tokens=1)
        ended = threading.Event()
        served.house._failed = ended.set
        turns = []

        def fails(*_: Any) -> bool:
            turns.append(1)
            raise SystemError("a fault of ours")

        served.house._turn = served.house._sweep = fails  # type: ignore[method-assign,assignment]
        (answer,) = ask(served, 1)
        assert ended.wait(30)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert served.client.get("/health").status_code == 503
        (late,) = ask(served, 1)
        assert (late.status_code, late.headers["retry-after"]) == (503, "2")


def test_one_source_does_not_hold_up_another(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"n": 24, "seed": 3, "max_tokens": 90, "logit_bias": {"0": -100}}
    alone = [choice["message"]["content"] for choice in served.chat("many", **body)["choices"]]
    batch, turn = base_of(served).batch, served.house._turn
    waited: list[int] = []

    def watched(*asked: Any) -> bool:
        # The other's turns, and how many rows the greedy one has meanwhile.
        if any(ticket.source.startswith("other") for ticket in batch._tickets()):
            waited.append(len(batch._decoder.rows))
        return turn(*asked)

    monkeypatch.setattr(served.house, "_turn", watched)
    found: list[list[str]] = []

    def many() -> None:
        choices = served.chat("many", **body)["choices"]
        found.append([choice["message"]["content"] for choice in choices])

    thread = threading.Thread(target=many)
    thread.start()
    until(lambda: len(batch._decoder.rows) == served.house.limits.rows)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "few"}], "max_tokens": 2}
    answer = served.client.post("/v1/chat/completions", json=asked, headers={"openai-project": "other"})
    assert answer.status_code == 200
    assert not found
    assert len(waited) <= 4
    thread.join()
    assert found == [alone]


def test_a_long_prompt_of_one_source_does_not_keep_another_s_from_being_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.chat(max_tokens=1)
    batch, turn = base_of(served).batch, served.house._turn
    began = threading.Event()

    def watched(base: Any, piece: int) -> bool:
        worked = turn(base, 8)
        if batch._reading:
            began.set()
        return worked

    monkeypatch.setattr(served.house, "_turn", watched)
    long: list[Any] = []
    thread = threading.Thread(target=lambda: long.append(served.chat("long " * 300, max_tokens=1)))
    thread.start()
    assert began.wait(30)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "b"}], "max_tokens": 1}
    answer = served.client.post("/v1/chat/completions", json=asked, headers={"openai-project": "other"})
    assert answer.status_code == 200
    assert not long
    thread.join()


def test_requests_are_counted_before_the_costly_part(tmp_path: Path) -> None:
    with Serving(tmp_path, waiting=3) as served:
        served.chat(max_tokens=1)
        base = base_of(served)
        loading: Future[Any] = Future()
        served.house.base = lambda *_: loading  # type: ignore[method-assign]
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(ask(served, 1, max_tokens=1)[0].status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: served.client.get("/health").json()["waiting"] == 3)
        (refused,) = ask(served, 1)
        assert refused.status_code == 429
        loading.set_result(base)
        for thread in threads:
            thread.join()
        assert codes == [200] * 3
        assert served.client.get("/health").json()["waiting"] == 0


def test_an_adapter_nobody_uses_goes_while_its_base_stays(tmp_path: Path) -> None:
    with Serving(tmp_path, idle_seconds=1.0) as served:
        served.chat(model=TUNED[0], max_tokens=1)
        before = base_of(served)
        until(lambda: served.chat(max_tokens=1) and TUNED[0] not in loaded(served)["tiny"])
        assert base_of(served) is before


def test_memory_stays_within_its_limit_whatever_waits(tmp_path: Path) -> None:
    with Serving(tmp_path, rows=1) as served:
        served.chat(model=TUNED[0], max_tokens=1)
        base = base_of(served)
        names = [f"ft:tiny:personal::more{number}" for number in range(8)]
        for name in names:
            add_model(served.context, name, "tiny", f"jobs/{TUNED[0].rpartition(':')[2]}")
        (held,) = base.adapters.values()
        limit_memory(served, base.weights + int(1.5 * held.nbytes))
        assert served.post("/v1/models/load", {"model": TUNED[1]}).status_code == 200
        assert loaded(served)["tiny"] == [TUNED[1]]
        # Room for three adapters and the rows.
        limit_memory(served, base.weights + 3 * held.nbytes + 100_000)
        taken = watch_memory(served)
        found: list[str] = []
        threads = [
            threading.Thread(
                target=lambda name=name: found.append(served.text(model=name, seed=1, max_tokens=9))
            )  # type: ignore[misc]
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1
        assert max(taken) <= served.house.limits.memory


def test_a_model_is_let_in_by_what_it_takes_here_not_by_its_file(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        file = served.context.settings.models / "thinker" / "model.safetensors"
        halved = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
        save_file(halved, file, metadata={"format": "pt"})
        served.house.limits = type(served.house.limits)(3 * file.stat().st_size, 64, 8, 600.0)
        answer = served.post("/v1/models/load", {"model": "thinker"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_too_large")
        assert not loaded(served)
        limit_memory(served, 1 << 30)
        served.chat(model="thinker", max_tokens=1)
        weights = base_of(served, "thinker").weights
        assert abs(house._needed(file.parent) - weights) < 0.05 * weights


def test_kept_prefixes_make_room_for_a_model(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        for number in range(6):
            served.chat(f"{number} of many " * 20, max_tokens=1)
        base = base_of(served)
        assert base.batch.nbytes > 300_000
        limit_memory(served, 2 * base.weights + 150_000)
        served.chat(model="thinker", max_tokens=1)
        assert set(loaded(served)) == {"tiny", "thinker"}
        assert served.house._taken() <= served.house.limits.memory


def test_the_prefixes_of_an_idle_model_make_room_for_another_s_rows(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        for number in range(6):
            served.chat(f"{number} of many " * 20, max_tokens=1)
        served.chat(model="thinker", max_tokens=1)
        idle, busy = base_of(served), base_of(served, "thinker")
        # Hardly one row's room beside what the first model has kept.
        limit_memory(served, idle.weights + busy.weights + idle.batch.nbytes + busy.batch.nbytes + 50_000)
        seen, taken = [], watch_memory(served)
        step = busy.batch._decoder.step

        def watched() -> Any:
            seen.append(len(busy.batch._decoder.rows))
            return step()

        busy.batch._decoder.step = watched  # type: ignore[method-assign]
        served.chat("x", model="thinker", n=4, max_tokens=20, logit_bias={"0": -100})
        assert max(seen) == 4
        assert max(taken) <= served.house.limits.memory
        assert idle.batch.nbytes > 0


def test_rows_that_would_not_stay_are_not_let_in(tmp_path: Path) -> None:
    with Serving(tmp_path) as served:
        served.chat(max_tokens=1)
        base = base_of(served)
        # Three rows of 1,100 tokens sit on a shelf of 2,048, and there is room for two and a prompt.
        limit_memory(served, base.weights + int(2.6 * 2048) * 512)
        returned: list[int] = []
        base.batch._decoder.rejoin = returned.append  # type: ignore[assignment,method-assign]
        texts = [f"{number}" + " w" * 530 for number in range(3)]
        threads = [
            threading.Thread(
                target=served.chat, args=(text,), kwargs={"max_tokens": 30, "logit_bias": {"0": -100}}
            )
            for text in texts
        ]
        taken = watch_memory(served)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert returned == []
        assert max(taken) <= served.house.limits.memory

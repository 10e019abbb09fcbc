"""The operator's file of model providers: who answers for a name, and what is wrong with a bad file."""

from pathlib import Path
from typing import Any

import pytest

from app.core.engines import serve
from app.core.providers import Providers, ProvidersError
from app.core.settings import Settings

TWO = """
[[provider]]
name = "hosted"
base_url = "https://api.example.com/v1/"
key_variable = "HOSTED_KEY"
requests_per_minute = 300
[provider.models]
"gpt-4.1-2025-04-14" = "gpt-4.1-2025-04-14"

[[provider]]
name = "local"
base_url = "http://127.0.0.1:8001/v1"
[provider.models]
"o4-mini" = "qwen3-32b"
"*" = "qwen3-4b"
"""


def _read(folder: Path, text: str) -> Providers:
    (folder / "providers.toml").write_text(text)
    return Providers.read(folder)


def test_no_file_is_no_provider(tmp_path: Path) -> None:
    assert Providers.read(tmp_path) == Providers()
    assert Providers().route("gpt-4.1") is None


def test_names_are_routed(tmp_path: Path) -> None:
    providers = _read(tmp_path, TWO)
    assert providers.models == ("gpt-4.1-2025-04-14", "o4-mini")
    routes = {name: providers.route(name) for name in ("gpt-4.1-2025-04-14", "o4-mini", "gpt-4o")}
    found = {name: (route.provider.name, route.model) for name, route in routes.items() if route}
    assert found == {
        "gpt-4.1-2025-04-14": ("hosted", "gpt-4.1-2025-04-14"),
        "o4-mini": ("local", "qwen3-32b"),
        "gpt-4o": ("local", "qwen3-4b"),
    }
    assert providers.all[0].url == "https://api.example.com/v1/chat/completions"


def test_the_key_is_the_environments(tmp_path: Path) -> None:
    hosted, local = _read(tmp_path, TWO).all
    assert local.key({}) is None
    assert hosted.key({"HOSTED_KEY": " sk-x\n"}) == "sk-x"
    assert [one.has_key({}) for one in (hosted, local)] == [False, True]
    for environment in ({}, {"HOSTED_KEY": ""}, {"HOSTED_KEY": "a b"}):
        with pytest.raises(ProvidersError, match="HOSTED_KEY"):
            hosted.key(environment)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[provider]", "line 1"),
        ("[providers.a]\nx = 1", r"\[\[provider\]\]"),
        ("provider = 3", r"\[\[provider\]\]"),
        (TWO.replace('name = "local"', 'name = "hosted"'), "two providers"),
        (TWO.replace("http://127", "ftp://127"), "provider 2, base_url"),
        (TWO.replace("requests_per_minute = 300", "requests_per_minute = -1"), "provider 1, requests_per"),
        (TWO.replace("requests_per_minute = 300", 'api_key = "x"'), "provider 1, api_key"),
        ('[[provider]]\nname = "a"\nbase_url = "http://a"\n', "provider 1, models"),
    ],
)
def test_a_bad_file_names_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ProvidersError, match=told) as caught:
        _read(tmp_path, text)
    assert "providers.toml" in str(caught.value)


ENGINES = """
[[engine]]
name = "plain"
base_url = "http://127.0.0.1:8001/v1"
[engine.models]
"qwen3-4b" = "Qwen/Qwen3-4B"

[[engine]]
name = "vllm"
base_url = "http://127.0.0.1:8002/v1"
adapters = true
data = "/mnt/tunesmith"
[engine.models]
"qwen3-4b" = "Qwen/Qwen3-4B"
"""


def test_an_engine_answers_for_its_base_models(tmp_path: Path) -> None:
    providers = _read(tmp_path, ENGINES)
    plain, vllm = providers.engines
    assert providers.engine("qwen3-4b", adapter=False) == plain
    assert providers.engine("qwen3-4b", adapter=True) == vllm
    assert providers.engine("other", adapter=False) is None
    with pytest.raises(ProvidersError, match="engine 2, adapters"):
        _read(tmp_path, ENGINES.replace("adapters = true", "adapters = 3"))


def test_who_serves_a_model(tmp_path: Path) -> None:
    """The engine that can, under names of its own; else our own process, at its socket."""
    settings, providers = Settings(data=tmp_path), _read(tmp_path, ENGINES)
    asked: Any = {"settings": settings, "providers": providers}
    weights = settings.root / "jobs" / "a" / "model.tok-1"
    base = serve("qwen3-4b", base_model="qwen3-4b", adapter=None, **asked)
    assert (base.engine.name, base.name, base.adapter) == ("plain", "Qwen/Qwen3-4B", None)
    tuned = serve("ft:qwen3-4b:x::y", base_model="qwen3-4b", adapter=weights, **asked)
    again = serve("ft:qwen3-4b:x::z", base_model="qwen3-4b", adapter=weights, **asked)
    assert tuned.adapter == "/mnt/tunesmith/jobs/a/model.tok-1"
    assert tuned.name.startswith("tunesmith-")
    assert tuned.name != again.name
    ours = serve("ft:other:x::y", base_model="other", adapter=weights, **asked)
    assert (ours.is_ours, ours.name, ours.adapter) == (True, "ft:other:x::y", None)
    assert ours.socket == settings.inference_socket

"""The model store: what is found, where it is, and the default model built from its package for real."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app import parts
from app.core.errors import NotFound
from app.core.settings import Settings
from tests.tiny_model import build_tiny_model
from worker import models


def test_a_directory_with_a_config_is_a_model_and_nothing_else_is(settings: Settings) -> None:
    build_tiny_model(settings.models / "tiny")
    build_tiny_model(settings.models / ".half-built")
    (settings.models / "notes").mkdir()
    (settings.models / "README").write_text("not a model")
    (found,) = models.scan(settings)
    assert (found.id, found.path, found.architecture) == (
        "tiny",
        settings.models / "tiny",
        "LlamaForCausalLM",
    )
    assert found.context == 4096
    assert found.weights_bytes == (settings.models / "tiny" / "model.safetensors").stat().st_size


def test_what_cannot_be_read_is_passed_over_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "models"
    settings = Settings(models=store, base_models=f"gone={tmp_path / 'gone'}, not a name")
    build_tiny_model(store / "tiny")
    for name, config in (("cut", "{"), ("list", "[]"), ("latin", '{"é": 1}'), ("locked", "{}")):
        (store / name).mkdir()
        (store / name / "config.json").write_text(config, encoding="latin-1")
    (store / "locked" / "model.safetensors").mkdir()
    for name, weights in (
        ("short", b"\x08"),
        ("empty-header", struct.pack("<Q", 50)),
        ("endless", struct.pack("<Q", 2**62)),
        ("shapeless", struct.pack("<Q", 8) + b'{"w":{}}'),
        ("listed-header", struct.pack("<Q", 2) + b"[]"),
    ):
        (store / name).mkdir()
        (store / name / "config.json").write_text("{}")
        (store / name / "model.safetensors").write_bytes(weights)
    for _ in range(2):
        assert [model.id for model in models.scan(settings)] == ["tiny"]
    said = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert sorted(map(str, said)) == [
        *("cut", "empty-header", "endless", "gone", "latin", "list"),
        *("listed-header", "locked", "not a name", "shapeless", "short"),
    ]


def test_parameters_are_counted_from_the_header(settings: Settings) -> None:
    from safetensors import safe_open

    directory = build_tiny_model(settings.models / "tiny")
    with safe_open(directory / "model.safetensors", "pt") as weights:
        expected = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert models.describe("tiny", directory).parameters == expected


def test_no_store_is_no_models(settings: Settings) -> None:
    assert models.scan(settings) == []


def test_the_licence_is_the_cards(settings: Settings) -> None:
    directory = build_tiny_model(settings.models / "tiny")
    assert models.describe("tiny", directory).licence is None
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nlicense: not this\n")
    assert models.describe("tiny", directory).licence == "mit"


def test_listed_models_stand_beside_the_store(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "models" / "tiny")
    elsewhere = build_tiny_model(tmp_path / "elsewhere")
    settings = Settings(models=tmp_path / "models", base_models=f"mine={elsewhere}, owner/name")
    assert [model.id for model in models.scan(settings)] == ["mine", "owner/name", "tiny"]
    assert models.locate(settings, "mine") == elsewhere
    assert models.locate(settings, "tiny") == tmp_path / "models" / "tiny"
    (remote,) = (model for model in models.scan(settings) if model.id == "owner/name")
    assert remote.path is None


@pytest.mark.parametrize("name", ["absent", "../models/tiny", ".half-built", ""])
def test_what_is_not_offered_is_not_located(settings: Settings, name: str) -> None:
    build_tiny_model(settings.models / "tiny")
    build_tiny_model(settings.models / ".half-built")
    with pytest.raises(NotFound, match="no base model"):
        models.locate(settings, name)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default model, built by two processes at once."""
    store = tmp_path_factory.mktemp("store")
    command = (sys.executable, "-W", "ignore", "-m", "worker.models", "fetch")
    running = [
        subprocess.Popen(
            command,
            cwd=parts.ROOT,
            env={"TUNESMITH_MODELS": str(store), "PATH": "/usr/bin:/bin", "HOME": str(store)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in running:
        out, problems = process.communicate(timeout=300)
        assert process.returncode == 0, problems
        assert out.strip() == str(store / models.DEFAULT_MODEL)
    yield store


def test_the_default_model_is_built_whole(fetched: Path) -> None:
    (model,) = models.scan(Settings(models=fetched))
    assert (model.id, model.licence, model.context) == (models.DEFAULT_MODEL, "apache-2.0", 8192)
    assert model.parameters == 134_515_008
    assert [path.name for path in fetched.iterdir() if path.is_dir() and path.name[0] != "."] == [model.id]
    assert not (fetched / f".{models.DEFAULT_MODEL}.building").exists()
    config = json.loads((fetched / model.id / "config.json").read_text())
    assert config["eos_token_id"] == 2
    assert "quantization_config" not in config


def test_the_default_model_speaks_its_chat_template_and_reads_digits_one_by_one(fetched: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetched / models.DEFAULT_MODEL)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.tokenize("AB-120") == ["AB", "-", "1", "2", "0"]
    # With the plain rule the second space would stick to the number.
    assert tokenizer.tokenize("x  42") == ["x", "ĠĠ", "4", "2"]

"""Checkpoints on disk: whole or absent, and nothing but the files that were saved."""

import json
from pathlib import Path

import pytest

from worker.engine import checkpoint
from worker.engine.errors import CheckpointRefused


def fill(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"12345")
    (folder / "b.bin").write_bytes(b"")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    digest = checkpoint.write(tmp_path / "deep" / "step-1", fill, {"step": 1})
    manifest = checkpoint.read(tmp_path / "deep" / "step-1")
    assert manifest["step"] == 1
    assert manifest["files"]["a.bin"]["bytes"] == 5
    assert set(manifest["files"]) == {"a.bin", "b.bin"}
    assert len(digest) == 64
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["step-1"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        checkpoint.write(tmp_path / "step-1", fails, {})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "step-1", fill, {})
    with pytest.raises(FileExistsError):
        checkpoint.write(tmp_path / "step-1", fill, {})


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "a.bin").write_bytes(b"12346"),
        lambda folder: (folder / "a.bin").write_bytes(b"1234"),
        lambda folder: (folder / "b.bin").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text(json.dumps({"format": 2, "files": {}})),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
)
def test_a_harmed_checkpoint_is_refused(tmp_path: Path, harm: object) -> None:
    checkpoint.write(tmp_path / "step-1", fill, {"step": 1})
    assert callable(harm)
    harm(tmp_path / "step-1")
    with pytest.raises(CheckpointRefused, match="step-1"):
        checkpoint.read(tmp_path / "step-1")


def test_the_versions_of_what_computes_are_named() -> None:
    assert {"torch", "transformers", "peft", "llguidance", "python"} <= set(checkpoint.versions())

"""Storage: whole or not at all, and never outside its root."""

import errno
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from app.core.errors import StorageFull
from app.core.storage import Storage


def test_bytes_come_back_with_their_hash(storage: Storage) -> None:
    """What was written is read; size and hash are told."""
    assert storage.write("files/p/a", [b"one", b"two"]) == (6, sha256(b"onetwo").hexdigest())
    assert b"".join(storage.chunks("files/p/a")) == b"onetwo"
    storage.remove("files/p/a")
    storage.remove("files/p/a")
    with pytest.raises(FileNotFoundError):
        storage.open("files/p/a")


def test_a_broken_write_leaves_the_old_bytes(storage: Storage) -> None:
    """An upload that breaks off neither replaces the file nor leaves a piece."""
    storage.write("files/p/a", [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        storage.write("files/p/a", broken())
    assert [path.name for path in storage.path("files/p").iterdir()] == ["a"]
    assert b"".join(storage.chunks("files/p/a")) == b"old"


def test_a_full_disk_is_a_507(storage: Storage) -> None:
    """ENOSPC becomes an error a person can act on, and nothing is left behind."""

    def full() -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageFull, match="Free some space"):
        storage.write("files/p/a", full())
    assert list(storage.path("files/p").iterdir()) == []


def test_a_directory_appears_whole(storage: Storage) -> None:
    """A block that fails leaves nothing; one that ends replaces an unfinished try."""

    def half() -> None:
        with storage.writing_directory("jobs/j/model") as directory:
            (directory / "part").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(storage.path("jobs/j").iterdir()) == []
    with storage.writing_directory("jobs/j/model") as directory:
        (directory / "whole").write_text("y")
    assert [path.name for path in storage.path("jobs/j/model").iterdir()] == ["whole"]


@pytest.mark.parametrize("uri", ["../x", "a/../../x", "/etc/passwd", "a//b", "", "a/\0"])
def test_no_uri_leaves_the_root(storage: Storage, uri: str) -> None:
    """A URI is made of plain names."""
    with pytest.raises(ValueError, match="not a storage URI"):
        storage.path(uri)


def test_an_open_file_is_not_followed_out(storage: Storage, tmp_path: Path) -> None:
    """The bytes lie under the root."""
    storage.write("files/p/a", [b"x"])
    assert storage.path("files/p/a").is_relative_to(storage.root)
    assert not (tmp_path / "a").exists()

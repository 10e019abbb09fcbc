"""Bytes by id under one root, written whole or not at all: temporary name, fsync, rename, fsync the folder.

Ids are ours, never a user's text. Called by services (files, rollouts) and the worker (checkpoints).
Other object stores come behind the same verbs when an issue asks for them.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from app.core.errors import StorageFull

_CHUNK = 1024 * 1024


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Storage:
    """A directory of blobs and directories, addressed by relative URIs such as `files/proj_x/file-y`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, uri: str) -> Path:
        """Return where `uri` lies. Raises: ValueError for a URI that would leave the root."""
        parts = uri.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in uri:
            raise ValueError(f"not a storage URI: {uri!r}")
        return self.root.joinpath(*parts)

    def write(self, uri: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Write `chunks` under `uri` and return (bytes, sha256).

        Raises: StorageFull when the disk has no room; nothing is left behind then.
        """
        target = self.path(uri)
        with self._no_room_is_507():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            digest, size = sha256(), 0
            try:
                with temporary.open("xb") as out:
                    for chunk in chunks:
                        out.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                    out.flush()
                    os.fsync(out.fileno())
                temporary.rename(target)
                sync(target.parent)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return size, digest.hexdigest()

    def adopt(self, file: Path, uri: str) -> None:
        """Take a finished file of the same disk under `uri`, durably.

        Raises: StorageFull when the disk has no room.
        """
        target = self.path(uri)
        with self._no_room_is_507():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            file.rename(target)
            sync(target.parent)

    @contextmanager
    def writing_directory(self, uri: str) -> Iterator[Path]:
        """Yield an empty directory that stands under `uri`, whole and durable, once the block has ended well.

        What an earlier, unfinished try left under `uri` is replaced.
        Raises: StorageFull when the disk has no room; nothing is left behind then.
        """
        target = self.path(uri)
        working = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        with self._no_room_is_507():
            working.mkdir(parents=True)
            try:
                yield working
                for path in (*working.iterdir(), working):
                    sync(path)
                shutil.rmtree(target, ignore_errors=True)
                working.rename(target)
                sync(target.parent)
            except BaseException:
                shutil.rmtree(working, ignore_errors=True)
                raise

    def open(self, uri: str) -> BinaryIO:
        """Open a blob for reading. Raises: FileNotFoundError."""
        return self.path(uri).open("rb")

    def chunks(self, uri: str) -> Iterator[bytes]:
        """Yield a blob's bytes in pieces of 1 MB."""
        with self.open(uri) as source:
            while chunk := source.read(_CHUNK):
                yield chunk

    def remove(self, uri: str) -> None:
        """Remove a blob or a directory; one that is gone already is no error."""
        path = self.path(uri)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    @contextmanager
    def _no_room_is_507(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"No room is left on the disk that holds {self.root}. Free some space and try again."
                ) from problem
            raise

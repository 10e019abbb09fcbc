"""The archive: files packed into one zip, stored as they are, and read back before anyone gets it.

Weights don't compress, so nothing is squeezed; times are fixed, so the same files make the same bytes.
"""

import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

_MOMENT = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1024 * 1024


def pack(folder: Path, target: Path, *, root: str) -> tuple[int, str]:
    """Pack a folder's files under `root/` and return (bytes, sha256) of the archive.

    Raises: OSError, also for an archive that does not read back as it was written.
    """
    with zipfile.ZipFile(target, "x", compression=zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(f"{root}/{path.relative_to(folder).as_posix()}", _MOMENT)
                entry.external_attr = 0o644 << 16
                with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as out:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
    with zipfile.ZipFile(target) as archive:
        if (broken := archive.testzip()) is not None:
            raise OSError(f"{broken} does not read back from the archive as it was written")
    digest = sha256()
    for chunk in _chunks(target):
        digest.update(chunk)
    return target.stat().st_size, digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's sha256."""
    digest = sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            yield chunk

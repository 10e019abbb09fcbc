"""Which files a grader may read: the interpreter, its library, the system's libraries, the grader packages.

By explicit path, never from sys.path or the working directory, and nothing that lies above the data folder.
"""

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# The loader's own file stands outside the library folders on some systems.
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
# What OpenAI's image 2025-05-08 offers.
OFFERED = (
    "numpy", "scipy", "sympy", "pandas", "rapidfuzz", "scikit-learn", "rouge-score", "deepdiff", "jsonschema",
    "pydantic", "pyyaml", "nltk", "sqlparse", "rdkit", "scikit-bio", "ast-grep-py",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/urandom")


class Exposed(Exception):
    """A path the sandbox would show holds the service's own data."""


@dataclass(frozen=True, slots=True)
class Visible:
    """What a sandbox shows. `links` are the top-level links (`/lib64`) that programs expect."""

    interpreter: Path
    read: tuple[Path, ...]
    links: tuple[tuple[str, str], ...]
    packages: Path | None


def visible(*, packages: Path, private: Path) -> Visible:
    """Return what a sandbox on this machine shows.

    Raises: Exposed when `private`, the data folder, lies under any of it.
    """
    found = packages.resolve()
    present = found if found.is_dir() else None
    read = _distinct([*_python(), *_libraries(), *([present] if present else [])])
    hidden = private.resolve()
    for path in read:
        if hidden == path or path in hidden.parents:
            raise Exposed(f"the data folder {hidden} lies under {path}, which graders may read")
    return Visible(_interpreter(), read, _links(), present)


def installed(packages: Path) -> dict[str, str]:
    """Return OpenAI's packages that graders can import here, with their versions."""
    found = {}
    for folder in packages.glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[name.lower().replace("_", "-")] = version
    return {name: found[name] for name in OFFERED if name in found}


def reachable(path: Path, *, through: bool) -> bool:
    """Say whether a user who owns nothing can read `path`; `through` asks its parents too."""
    places = [path, *(path.parents if through else ())]
    return all(place.stat().st_mode & (0o005 if place.is_dir() else 0o004) for place in places[:1]) and all(
        place.stat().st_mode & 0o001 for place in places[1:]
    )


def _interpreter() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable) or sys.executable).resolve()


def _python() -> list[Path]:
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("INSTSONAME"))
    # Of the interpreter itself, not of a virtual environment around it.
    own = {"platbase": sys.base_exec_prefix, "base": sys.base_prefix}
    folders = [Path(sysconfig.get_path(name, vars=own)) for name in ("stdlib", "platstdlib")]
    return [_interpreter(), *folders, library]


def _libraries() -> list[Path]:
    multiarch = str(sysconfig.get_config_var("MULTIARCH") or "")
    folders = ["/lib64", "/usr/lib64", *(f"{top}/{multiarch}" for top in ("/lib", "/usr/lib") if multiarch)]
    return [Path(path) for path in (*folders, *_LOADERS, "/etc/ld.so.cache", "/usr/share/zoneinfo")]


def _links() -> tuple[tuple[str, str], ...]:
    tops = ("/lib", "/lib64", "/bin", "/sbin")
    return tuple((os.readlink(top), top) for top in tops if os.path.islink(top))  # noqa: PTH114, PTH115


def _distinct(paths: list[Path]) -> tuple[Path, ...]:
    there = dict.fromkeys(path.resolve() for path in paths if path.exists())
    return tuple(path for path in there if not any(other in path.parents for other in there))

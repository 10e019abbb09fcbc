"""Fetches what the browser gets from others (`update NAME`) and proves it unchanged (`verify`).

`update` needs npm and is a maintainer's command; `verify` is plain Python and runs in `make test`.
The manifest is vendor.toml, the record vendor.lock.json; THIRD_PARTY_NOTICES.md is written from both.
"""

import base64
import gzip
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCK = HERE / "vendor.lock.json"
NOTICES = ROOT / "THIRD_PARTY_NOTICES.md"
UNSHIPPED = ROOT / "tests" / "browser" / "vendor"
OURS = {"vendor.py", "vendor.toml", "vendor.lock.json"}
ALLOWED = {"0BSD", "MIT", "ISC", "BSD-2-Clause", "BSD-3-Clause", "OFL-1.1", "Apache-2.0"}
BUDGET_KB = {"scripts": 60, "styles": 12, "fonts": 90}
# An address in a comment or an XML namespace loads nothing.
LOADS = re.compile(
    r"""(?:\b(?:src|href|action)\s*=\s*["']?|url\(\s*["']?|@import\s+["']|\bfetch\(\s*["']|\bfrom\s+["'])"""
    r"""(?:https?:)?//[^\s"')]+"""
)


def manifest() -> dict[str, dict[str, Any]]:
    """Return vendor.toml's entries."""
    return tomllib.loads((HERE / "vendor.toml").read_text())


def folder(name: str, entry: dict[str, Any]) -> Path:
    """Return where an entry's files lie; the version is part of the path, so it may be cached for ever."""
    return (HERE if entry.get("shipped", True) else UNSHIPPED) / f"{name}@{entry['version']}"


def update(name: str) -> None:
    """Fetch one entry, check it against its published digest, copy its files and record them."""
    entry = manifest()[name]
    target = f"{entry['package']}@{entry['version']}"
    published = _npm("view", target, "dist.integrity").strip()
    with tempfile.TemporaryDirectory() as temporary:
        _npm("pack", target, "--silent", "--pack-destination", temporary)
        archive = next(Path(temporary).glob("*.tgz")).read_bytes()
        digest = "sha512-" + base64.b64encode(sha512(archive).digest()).decode()
        if digest != published:
            sys.exit(f"{target}: the archive's digest differs from the published one")
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as packed:
            files = {m.name.split("/", 1)[1]: packed.extractfile(m) for m in packed if m.isfile()}
            read = {path: source.read() for path, source in files.items() if source is not None}
    made = {there: read[here] for here, there in entry.get("files", {}).items()}
    if "sprite" in entry:
        made[entry["sprite"]] = sprite({icon: read[f"icons/{icon}.svg"].decode() for icon in entry["icons"]})
    made_in = folder(name, entry)
    made_in.mkdir(parents=True, exist_ok=True)
    for there, content in made.items():
        (made_in / there).write_bytes(content)
    licence = HERE / "LICENSES" / f"{name}.txt"
    licence.parent.mkdir(exist_ok=True)
    licence.write_bytes(read[entry["licence_file"]])
    lock = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    lock[name] = {
        "package": entry["package"],
        "version": entry["version"],
        "integrity": digest,
        "licence": entry["licence"],
        "licence_file": f"LICENSES/{name}.txt",
        "licence_sha256": sha256(read[entry["licence_file"]]).hexdigest(),
        "shipped": entry.get("shipped", True),
        "files": {t: {"bytes": len(c), "sha256": sha256(c).hexdigest()} for t, c in sorted(made.items())},
    }
    LOCK.write_text(json.dumps(dict(sorted(lock.items())), indent=2) + "\n")
    NOTICES.write_text(notices())


def _npm(*words: str) -> str:
    return subprocess.run(["npm", *words], check=True, capture_output=True, text=True).stdout


def sprite(icons: dict[str, str]) -> bytes:
    """Join icons into one file of symbols; stroke and colour come from the page's styles."""
    symbols = []
    for name, source in sorted(icons.items()):
        shapes = re.search(r"<svg[^>]*>(.*)</svg>", source, re.DOTALL)
        if shapes is None:
            sys.exit(f"icon {name} has no shapes")
        inside = re.sub(r"\s*\n\s*", "", shapes[1])
        symbols.append(f'<symbol id="{name}" viewBox="0 0 24 24">{inside}</symbol>')
    head = '<svg xmlns="http://www.w3.org/2000/svg"><!-- Lucide, ISC licence -->'
    return (head + "\n" + "\n".join(symbols) + "\n</svg>\n").encode()


def notices() -> str:
    """Return the text of THIRD_PARTY_NOTICES.md."""
    lock, entries = json.loads(LOCK.read_text()), manifest()
    parts = ["# Third-party notices", "", "Written by `static/vendor/vendor.py`; do not edit.", ""]
    for name, record in lock.items():
        parts += [f"## {record['package']} {record['version']}", "", f"Licence: {record['licence']}.", ""]
        parts += [entries[name]["note"], "", "```text"]
        parts += [line.rstrip() for line in (HERE / record["licence_file"]).read_text().strip().splitlines()]
        parts += ["```", ""]
    return "\n".join(parts)


def verify() -> list[str]:
    """Return what is wrong; an empty list when all is well."""
    return [*_files_differ(), *_loads_elsewhere(), *_over_budget()]


def _files_differ() -> list[str]:
    lock, entries, wrong = json.loads(LOCK.read_text()), manifest(), []
    if set(lock) != set(entries):
        wrong.append("vendor.toml and vendor.lock.json name different entries")
    listed = {HERE / name for name in OURS}
    for name, record in lock.items():
        entry = entries.get(name, record)
        if entry["version"] != record["version"]:
            wrong.append(f"{name}: vendor.toml says {entry['version']}, the lock {record['version']}")
        if record["shipped"] and record["licence"] not in ALLOWED:
            wrong.append(f"{name}: {record['licence']} may not be shipped")
        expected = {folder(name, record) / file: facts["sha256"] for file, facts in record["files"].items()}
        expected[HERE / record["licence_file"]] = record["licence_sha256"]
        for path, digest in expected.items():
            listed.add(path)
            if not path.is_file():
                wrong.append(f"{path.relative_to(ROOT)} is missing")
            elif sha256(path.read_bytes()).hexdigest() != digest:
                wrong.append(f"{path.relative_to(ROOT)} differs from the lock")
    present = [p for place in (HERE, UNSHIPPED) for p in place.rglob("*") if p.is_file()]
    for path in present:
        if path not in listed and "__pycache__" not in path.parts:
            wrong.append(f"{path.relative_to(ROOT)} is not in the lock")
    if not NOTICES.exists() or NOTICES.read_text() != notices():
        wrong.append("THIRD_PARTY_NOTICES.md is out of date")
    return wrong


def _loads_elsewhere() -> list[str]:
    wrong = []
    sources = [*(ROOT / "templates").rglob("*.html"), *(ROOT / "static").rglob("*.css")]
    sources += [p for p in (ROOT / "static").rglob("*.js") if UNSHIPPED not in p.parents]
    for path in sources:
        for found in LOADS.finditer(path.read_text()):
            wrong.append(f"{path.relative_to(ROOT)} loads from elsewhere: {found[0]}")
    return wrong


def _over_budget() -> list[str]:
    static = ROOT / "static"

    def zipped(paths: list[Path]) -> float:
        return sum(len(gzip.compress(path.read_bytes(), 9)) for path in paths) / 1024

    fonts = [path for path in static.rglob("*.woff2") if "latin-ext" not in path.name]
    sizes = {
        "scripts": zipped(list(static.rglob("*.js"))),
        "styles": zipped(list(static.rglob("*.css"))),
        "fonts": sum(path.stat().st_size for path in fonts) / 1024,
    }
    return [
        f"{kind}: {sizes[kind]:.1f} KB, the budget is {limit}"
        for kind, limit in BUDGET_KB.items()
        if sizes[kind] > limit
    ]


def main(words: list[str]) -> None:
    """Run one command."""
    if words[:1] == ["update"] and len(words) == 2:
        update(words[1])
    elif words == ["verify"]:
        wrong = verify()
        print("\n".join(wrong) if wrong else "static/vendor: unchanged, within its budgets")
        sys.exit(bool(wrong))
    else:
        sys.exit("usage: vendor.py update NAME | verify")


if __name__ == "__main__":
    main(sys.argv[1:])

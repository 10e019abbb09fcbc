"""Promises of the design that can be computed: contrast of the tokens, vendored files unchanged."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSS = (ROOT / "static/css/app.css").read_text()
TEXT, GRAPHIC = 4.5, 3.0
GROUNDS = ("canvas", "surface", "sunken")
PAIRS = [
    *((ink, ground, TEXT) for ink in ("ink", "ink-2", "ink-3") for ground in (*GROUNDS, "selected")),
    *(("accent", ground, TEXT) for ground in GROUNDS),
    ("on-accent", "accent", TEXT),
    ("on-accent", "accent-hover", TEXT),
    *((tone, f"{tone}-soft", TEXT) for tone in ("good", "warn", "bad", "info", "paused")),
    *((tone, "surface", TEXT) for tone in ("good", "bad")),
    ("line-strong", "canvas", GRAPHIC),
    ("line-strong", "surface", GRAPHIC),
    *((f"chart-{name}", "surface", GRAPHIC) for name in ("train", "valid", "base", "4", "5")),
    ("chart-train", "sunken", GRAPHIC),
]


def tokens(block: str) -> dict[str, str]:
    """Return a block's colours by name."""
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9A-F]{6});", block))


def themes() -> dict[str, dict[str, str]]:
    """Return the stylesheet's three lists of colours."""
    blocks = re.findall(r"color-scheme: (light|dark);(.*?)\}", CSS, re.DOTALL)
    assert [name for name, _ in blocks] == ["light", "dark", "dark"]
    return {"light": tokens(blocks[0][1]), "dark": tokens(blocks[1][1]), "auto": tokens(blocks[2][1])}


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""

    def linear(part: int) -> float:
        share = part / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_formula() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21.0)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("front", "ground", "least"), PAIRS)
def test_contrast(theme: str, front: str, ground: str, least: float) -> None:
    colours = themes()[theme]
    assert contrast(colours[front], colours[ground]) >= least


def test_dark_is_the_same_by_choice_and_by_system() -> None:
    made = themes()
    assert made["dark"] == made["auto"]
    assert made["dark"].keys() == made["light"].keys()


def test_colours_stand_in_tokens_only() -> None:
    rest = re.sub(r"@layer tokens \{.*?\n\}\n", "", CSS, flags=re.DOTALL)
    assert not re.findall(r"#[0-9A-Fa-f]{6}", rest)


@pytest.fixture
def vendor() -> ModuleType:
    """The vendoring tool as a module."""
    spec = importlib.util.spec_from_file_location("vendor", ROOT / "static/vendor/vendor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vendored_files_are_what_was_published(vendor: ModuleType) -> None:
    assert vendor.verify() == []


def test_verify_sees_changes(vendor: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("static", "templates", "tests/browser/vendor"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setattr(vendor, "ROOT", tmp_path)
    monkeypatch.setattr(vendor, "HERE", tmp_path / "static/vendor")
    monkeypatch.setattr(vendor, "UNSHIPPED", tmp_path / "tests/browser/vendor")
    monkeypatch.setattr(vendor, "LOCK", tmp_path / "static/vendor/vendor.lock.json")
    monkeypatch.setattr(vendor, "NOTICES", tmp_path / "THIRD_PARTY_NOTICES.md")
    vendor.NOTICES.write_text(vendor.notices())
    assert vendor.verify() == []
    with (tmp_path / "static/vendor/uplot@1.6.32/uPlot.min.css").open("a") as changed:
        changed.write(" ")
    (tmp_path / "static/vendor/more.js").write_text("// unlisted")
    (tmp_path / "templates/bad.html").write_text('<script src="https://cdn.example/x.js"></script>')
    (tmp_path / "static/css/more.css").write_text("".join(f".a{n:x}{{top:{n}px}}" for n in range(20_000)))
    wrong = "\n".join(vendor.verify())
    assert "uPlot.min.css differs from the lock" in wrong
    assert "more.js is not in the lock" in wrong
    assert "bad.html loads from elsewhere" in wrong
    assert "styles: " in wrong

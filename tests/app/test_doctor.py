"""What `status` says of judge models: which there are, and what is missing with its cure."""

import pytest

from app.core.settings import Settings
from app.doctor import findings

FILE = """
[[provider]]
name = "hosted"
base_url = "https://api.example.com/v1"
key_variable = "TUNESMITH_TEST_JUDGE_KEY"
[provider.models]
"gpt-4.1" = "gpt-4.1"
"*" = "gpt-4.1-mini"
"""


def _line(settings: Settings) -> str:
    (line,) = (line for line in findings(settings) if line.lstrip().startswith("judges"))
    return line


def test_judges(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, a key that is not set, all well, a file that can't be read."""
    settings.root.mkdir()
    file = settings.root / "providers.toml"
    assert "none" in _line(settings)
    file.write_text(FILE)
    monkeypatch.delenv("TUNESMITH_TEST_JUDGE_KEY", raising=False)
    assert "hosted wants the variable TUNESMITH_TEST_JUDGE_KEY  ->  set it" in _line(settings)
    monkeypatch.setenv("TUNESMITH_TEST_JUDGE_KEY", "sk-x")
    assert _line(settings).split() == ["judges", "gpt-4.1"]
    file.write_text("[[provider]")
    assert "providers.toml" in _line(settings)
    assert "->" in _line(settings)

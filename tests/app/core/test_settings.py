"""Settings: the address a person opens is one a browser takes and the service answers at."""

import runpy

import pytest

from app import parts
from app.core.settings import Settings

ADDRESSES = [
    ("127.0.0.1", "http://127.0.0.1:8001"),
    ("0.0.0.0", "http://127.0.0.1:8001"),
    ("::", "http://[::1]:8001"),
    ("fd00::7", "http://[fd00::7]:8001"),
    ("tune.example", "http://tune.example:8001"),
]


@pytest.mark.parametrize(("host", "address"), ADDRESSES)
def test_the_address_of_a_host(host: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample project, which imports nothing of ours, comes to the same."""
    assert Settings(host=host, port=8001).address == address
    monkeypatch.setenv("TUNESMITH_HOST", host)
    monkeypatch.setenv("TUNESMITH_PORT", "8001")
    sample = runpy.run_path(str(parts.ROOT / "examples" / "order-numbers" / "run.py"))
    assert sample["default_address"]() == address

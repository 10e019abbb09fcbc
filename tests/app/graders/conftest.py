"""A judge on loopback and the judges of a data folder that names it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.graders.judge import Judges
from tests.judge import JudgeServer, judging


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JudgeServer]:
    """A judge, named in the providers file of a data folder."""
    with judging() as judge:
        judge.write_providers(tmp_path)
        yield judge


@pytest.fixture
def judges(server: JudgeServer, tmp_path: Path) -> Iterator[Judges]:
    """The judges of that data folder."""
    judges = Judges.of(tmp_path)
    yield judges
    judges.close()

"""The running service every test of this folder shares."""

from collections.abc import Iterator

import pytest

from tests.clients.stage import Stage, standing


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A running service and what clients must be told about it."""
    with standing(tmp_path_factory.mktemp("stage")) as stage:
        yield stage

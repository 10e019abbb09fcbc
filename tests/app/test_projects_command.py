"""`project add` and `key`: what they print works, and only for its own project."""

from pathlib import Path

import pytest

from app.cli import main
from app.core.context import Context
from app.core.settings import Settings
from app.services import api_keys, projects


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A fresh data folder that the commands find."""
    monkeypatch.setenv("TUNESMITH_DATA", str(tmp_path / "data"))
    return Context.build(Settings())


def test_a_project_comes_with_its_first_key(data: Context, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["project", "add", "Second team"]) == 0
    project_id, secret = (line.split(": ")[1] for line in capsys.readouterr().out.splitlines())
    with data.db.reading() as session:
        key = api_keys.authenticate(session, secret=secret)
        assert (key.project_id, key.scopes) == (project_id, ["admin"])
        assert projects.get_project(session, project_id=project_id).name == "Second team"
        assert projects.default_project(session).id != project_id
    data.db.dispose()


def test_a_key_has_the_project_and_scopes_asked_for(
    data: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["project", "add", "Second"])
    project_id = capsys.readouterr().out.split()[1]
    assert main(["key", "--project", project_id, "--scopes", "jobs:read,files:read"]) == 0
    with data.db.reading() as session:
        key = api_keys.authenticate(session, secret=capsys.readouterr().out.strip())
        assert (key.project_id, key.scopes) == (project_id, ["jobs:read", "files:read"])
    assert main(["key", "--scopes", "jobs:fly"]) == 1
    assert "jobs:fly" in capsys.readouterr().err
    assert main(["key", "--project", "proj_x"]) == 1
    assert main(["project", "add", " "]) == 1
    data.db.dispose()

"""What a sandbox shows: the interpreter's own files, the packages, and never the data folder."""

import sys
from pathlib import Path

import pytest

from app import doctor
from app.core.settings import Settings
from app.graders.sandbox import landlock
from app.graders.sandbox.level import choose
from app.graders.sandbox.paths import Exposed, installed, reachable, visible
from tests.app.graders.sandboxes import PACKAGES


def test_what_is_shown_is_neither_the_program_nor_its_environment_nor_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    seen = visible(packages=PACKAGES, private=tmp_path / "data")
    program = Path(doctor.__file__).parents[1]
    hidden = [program, program / "app", Path(sys.prefix), tmp_path, Path.home(), Path("/etc"), Path("/")]
    if sys.prefix == sys.base_prefix:
        hidden.remove(Path(sys.prefix))
    for path in hidden:
        assert path.resolve() not in seen.read
    assert PACKAGES in seen.read


@pytest.mark.parametrize("data", [".", "below", "below/further"])
def test_packages_above_the_data_folder_are_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(Exposed, match="which graders may read"):
        visible(packages=tmp_path, private=tmp_path / data)


def test_packages_inside_the_data_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    assert visible(packages=tmp_path / "packages", private=tmp_path).packages == tmp_path / "packages"


def test_a_folder_of_packages_that_is_not_there_is_no_packages(tmp_path: Path) -> None:
    assert visible(packages=tmp_path / "none", private=tmp_path / "data").packages is None
    assert installed(tmp_path / "none") == {}


def test_a_stranger_reaches_what_every_parent_lets_through(tmp_path: Path) -> None:
    place = tmp_path / "outer" / "inner"
    place.mkdir(parents=True)
    place.chmod(0o755)
    (tmp_path / "outer").chmod(0o700)
    assert reachable(place, through=False)
    assert not reachable(place, through=True)
    place.chmod(0o700)
    assert not reachable(place, through=False)
    assert reachable(Path("/usr"), through=True)


def test_status_names_the_sandbox_and_the_packages(settings: Settings) -> None:
    choose.cache_clear()
    lines = list(doctor.findings(settings))
    assert any(line.startswith("  sandbox  level ") and "attacks held" in line for line in lines)
    assert any(line.startswith("  graders  numpy 2.2.4, ") and "sqlparse 0.5.3" in line for line in lines)


def test_status_without_a_sandbox_says_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choose.cache_clear()
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    bare = settings.model_copy(update={"grader_packages": tmp_path / "none"})
    lines = list(doctor.findings(bare))
    assert any(line.startswith("  sandbox  none  ->  Python graders can't run here") for line in lines)
    assert any("run `make graders`" in line for line in lines)

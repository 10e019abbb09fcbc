"""The choice of a level: the self-test is potent, a hole is found, and nothing weaker is ever taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.graders.sandbox import landlock, launch, level
from app.graders.sandbox.level import PROBES, SandboxUnavailable, choose, trouble
from tests.app.graders.sandboxes import LEVELS, PACKAGES, SEEN

SELFTEST = Path(level.__file__).with_name("selftest.py")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    choose.cache_clear()


@pytest.mark.parametrize("probe", PROBES)
def test_each_probe_gets_through_where_there_is_no_sandbox(probe: str) -> None:
    """In a plain process; `fork` and `program` end it as only a program of their own would."""
    code = "import json, sys, selftest; print(selftest.grade({}, json.load(sys.stdin)))"
    with level._bait() as bait:
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=SELFTEST.parent,
            input=json.dumps({**bait, "probe": probe}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        Path(bait["folder"], bait["mark"]).unlink(missing_ok=True)
    if probe == "program":
        assert (result.returncode, result.stdout) == (0, "")  # the shell took its place
    else:
        assert result.stdout.splitlines()[-1] == "1.0", result.stderr


def test_the_best_level_that_holds_is_taken() -> None:
    assert choose(packages=PACKAGES, private=Path("/nonexistent")).level == LEVELS[0]


def test_without_bubblewrap_it_is_level_b_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = choose(packages=PACKAGES, private=Path("/nonexistent"))
    assert chosen.level == "B"
    assert chosen.description.endswith("; level A: bubblewrap is not installed")


@pytest.mark.parametrize("name", LEVELS)
def test_a_hole_in_the_filter_fails_the_level(monkeypatch: pytest.MonkeyPatch, name: launch.Level) -> None:
    """The zygote's own text is changed on its way in, so that the filter allows everything."""
    parcel = launch.parcel

    def holed(*arguments: object) -> bytes:
        whole = json.loads(parcel(*arguments)[4:])  # type: ignore[arg-type]
        whole["modules"] = [
            (module, text.replace("self._filter.install()", "pass")) for module, text in whole["modules"]
        ]
        data = json.dumps(whole).encode()
        return len(data).to_bytes(4, "big") + data

    monkeypatch.setattr(launch, "parcel", holed)
    assert "the self-test 'fork' ended with" in (trouble(name, SEEN) or "")


def test_where_no_level_holds_nothing_is_run_and_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The interpreter that the sandbox would start cannot be started."""
    monkeypatch.setattr(sys, "_base_executable", str(tmp_path / "no-python"))
    with pytest.raises(SandboxUnavailable) as refused:
        choose(packages=PACKAGES, private=Path("/nonexistent"))
    assert (refused.value.status, refused.value.code) == (503, "grader_sandbox_unavailable")
    assert "level A:" in refused.value.message and "level B:" in refused.value.message
    assert "apt install bubblewrap" in refused.value.message


def test_a_kernel_without_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="lsm=landlock"):
        choose(packages=PACKAGES, private=Path("/nonexistent"))


@pytest.mark.parametrize(
    ("system", "processor"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64")]
)
def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch, system: str, processor: str) -> None:
    monkeypatch.setattr(launch.platform, "system", lambda: system)
    monkeypatch.setattr(launch.platform, "machine", lambda: processor)
    with pytest.raises(SandboxUnavailable, match="can't run here"):
        choose(packages=PACKAGES, private=Path("/nonexistent"))

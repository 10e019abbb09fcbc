"""Every attack of the corpus at every level, as this user and as one who owns nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.graders.sandbox.launch import Level
from tests.app.graders.attacks import harness, runs
from tests.app.graders.attacks.runs import Attacker
from tests.app.graders.sandboxes import LEVELS


@pytest.fixture(scope="module", params=LEVELS, ids=lambda level: f"level-{level}")
def level(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=runs.attackers(), ids=lambda attacker: attacker.name)
def attacker(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def verdicts(level: Level, attacker: Attacker) -> Any:
    return runs.attacked(level, attacker)


@pytest.mark.parametrize("attack", harness.attacks())
def test_an_attack_is_held(verdicts: dict[str, Any], attack: str) -> None:
    verdict = verdicts[attack]
    assert verdict["held"], verdict["damage"]


def test_the_corpus_is_whole() -> None:
    numbers = [int(name[1:3]) for name in harness.attacks()]
    assert numbers == list(range(1, 46))


# What can be tried on this machine without a sandbox and harms nothing but the bait.
_HARMLESS = (
    "a01_secret_in_environment", "a02_database_file", "a03_password_file", "a04_home_directories",
    "a05_every_process_environ", "a06_tcp", "a07_udp", "a08_abstract_socket", "a09_path_socket",
    "a11_create_files_everywhere", "a24_risky_system_calls", "a38_truncate_a_foreign_file",
    "x40_change_a_foreign_file_without_opening_it",
)  # fmt: skip


@pytest.mark.parametrize("attack", _HARMLESS)
def test_without_a_sandbox_the_attack_gets_through_and_is_seen(attack: str) -> None:
    """The corpus is no set of blanks, and the harness would notice."""
    with harness.bait() as (item, damage):
        item["folders"] = [item["private"], item["work"]]
        code = "import corpus, json, sys; print(corpus.grade({}, json.load(sys.stdin)))"
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(harness.__file__).parent,
            input=json.dumps({**item, "attack": attack}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.stdout.splitlines()[-1] == "1.0", result.stderr
        seen = damage()
    leaves_traces = attack.startswith(("a06", "a07", "a08", "a09", "a11", "a38", "x40"))
    assert bool(seen) == leaves_traces

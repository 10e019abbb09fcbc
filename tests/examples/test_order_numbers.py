"""The sample project: its files are what its script writes, splits stay apart, every row holds its answer."""

import json
import re
import runpy
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from app import parts
from tests.service import running_service

FOLDER = parts.ROOT / "examples" / "order-numbers"
SPLITS = ("train", "valid", "test")
ORDER = re.compile(r"[A-Z]{2}-\d{5}")


def rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of one file."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def messages(name: str) -> list[str]:
    """Return the messages of one file, without the turns all share."""
    return [row["messages"][-1]["content"] for row in rows(name)]


def test_the_files_are_what_the_script_writes(tmp_path: Path) -> None:
    script = tmp_path / "make_data.py"
    script.write_text((FOLDER / "make_data.py").read_text())
    runpy.run_path(str(script), run_name="__main__")
    for name in SPLITS:
        assert (tmp_path / f"{name}.jsonl").read_text() == (FOLDER / f"{name}.jsonl").read_text()


def test_sizes() -> None:
    assert [len(rows(name)) for name in SPLITS] == [160, 60, 120]


@pytest.mark.parametrize("name", SPLITS)
def test_every_row_holds_its_answer_once(name: str) -> None:
    for row in rows(name):
        message = row["messages"][-1]
        assert message["role"] == "user"
        assert ORDER.fullmatch(row["order_number"])
        assert message["content"].count(row["order_number"]) == 1
        assert len(re.findall(r"\d+", message["content"])) >= 2, "there must be a number to confuse it with"


def test_all_prompts_share_one_beginning() -> None:
    assert len({json.dumps(row["messages"][:-1]) for name in SPLITS for row in rows(name)}) == 1


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_no_sentence_or_order_number_is_in_two_splits(one: str, other: str) -> None:
    def said(name: str) -> set[str]:
        # Sentences with their numbers taken out: what a template is.
        return {
            re.sub(r"[A-Z]*-?\d[\w.-]*", "#", sentence)
            for message in messages(name)
            for sentence in re.split(r"(?<=[.?!,]) ", message)
            if re.search(r"\d", sentence)
        }

    assert not said(one) & said(other)
    assert not {row["order_number"] for row in rows(one)} & {row["order_number"] for row in rows(other)}


def test_a_model_that_learns_nothing_fails_the_demo(tmp_path: Path) -> None:
    """A random model can't get better, and the whole project, through real processes, says so."""
    with running_service(tmp_path) as service:
        ran = subprocess.run(
            (sys.executable, str(FOLDER / "run.py"), "--model", "tiny", "--seed", "7"),
            env={**service.environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 1, ran.stderr + service.logs()
        *_, before, last = ran.stdout.splitlines()
    assert before == "The tuned model is not better: the lower bound of the difference is not above 0."
    assert last.startswith("RESULT "), ran.stderr
    result = json.loads(last.removeprefix("RESULT "))
    assert list(result) == [
        *("base", "tuned", "difference", "ci95", "n", "train_seconds", "total_seconds"),
        *("job", "model", "dashboard"),
    ]
    assert (result["base"], result["tuned"], result["n"]) == (0.0, 0.0, 120)
    assert result["model"].startswith("ft:tiny:personal:orders:")
    assert result["dashboard"] == f"{service.url}/finetune/{result['job']}"
    assert re.search(r"step +20/20 +reward 0\.00", ran.stdout)

"""python graders: rewards, every way a source can go wrong, and that the next call never notices."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.settings import Settings
from app.graders.grade import grade
from app.graders.means import Means
from app.graders.python import MOST_SOURCES, PythonGraders, limits_of
from app.graders.result import Grade
from app.graders.sandbox.launch import Level, Limits
from app.graders.sandbox.level import SandboxUnavailable
from app.graders.spec import parse_grader
from tests.app.graders.sandboxes import LEVELS, PACKAGES, sandbox

LIMITS = Limits(seconds=2.0, memory_bytes=512 * 1024**2)
SAMPLE = {"output_text": "hello", "choices": [], "output_tools": []}


@pytest.fixture(scope="module", params=LEVELS)
def python(request: pytest.FixtureRequest) -> Iterator[PythonGraders]:
    """A runner at each level this machine has."""
    level: Level = request.param
    with PythonGraders(sandbox(level), limits=LIMITS, processes=1) as runner:
        yield runner


def _run(python: PythonGraders, source: str, item: dict[str, Any] | None = None) -> Grade:
    return python.run(source, sample=SAMPLE, item=item or {})


def _graded(python: PythonGraders, body: str, **item: Any) -> Grade:
    """Run a grade function of one body."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return _run(python, f"def grade(sample, item):\n{lines}\n", item)


def test_some_level_of_the_sandbox_can_be_had_here() -> None:
    """Otherwise every other test of this file would be empty."""
    assert LEVELS


@pytest.mark.parametrize(
    ("body", "reward"),
    [
        ("return 1", 1.0),
        ("return 0.25", 0.25),
        ("return -3.5", -3.5),
        ("return float(sample['output_text'] == item['label'])", 1.0),
        ("return float(sample['output_json'] is None and sample['output_audio'] is None)", 1.0),
        ("return len(sample['choices']) + 0.5", 0.5),
        ("import numpy\nreturn numpy.float64(0.75)", 0.75),
        ("import rapidfuzz\nreturn rapidfuzz.fuzz.ratio('ab', 'ac') / 100", 0.5),
        ("import pydantic, jsonschema, sqlparse\nreturn 1.0", 1.0),
        ("import tempfile\nprint('x' * 100_000)\nreturn 1.0", 1.0),
    ],
)
def test_a_number_is_the_reward(python: PythonGraders, body: str, reward: float) -> None:
    """What is printed is dropped; a numpy float is a float."""
    assert _graded(python, body, label="hello") == Grade(reward=reward)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def grade(sample, item)\n    return 1\n", 'File "grader.py", line 1'),
        ("def grade(sample, item)\n    return 1\n", "SyntaxError"),
        ("x = (" * 5000, "SyntaxError"),
        ("x = " + "-" * 100_000 + "1", "Error"),
        ("def score(sample, item):\n    return 1\n", "no function `grade(sample, item)`"),
        ("", "no function `grade(sample, item)`"),
        ("grade = 1", "no function `grade(sample, item)`"),
        ("def grade(sample):\n    return 1\n", "it takes (sample) (line 1)"),
        ("def grade(sample, item, more):\n    return 1\n", "it takes (sample, item, more) (line 1)"),
        ("def grade(sample, item, *, strict):\n    return 1\n", "two positional arguments"),
        ("class grade:\n    def __init__(self): pass\n", "two positional arguments"),
        ("globals()['grade'] = lambda sample: 1", "it takes (sample)."),
        ("import nothing_of_the_kind\ndef grade(sample, item):\n    return 1\n", "ModuleNotFoundError"),
        ("raise ValueError('at import')\ndef grade(s, i): return 1\n", "line 1, in <module>"),
        ("async def grade(sample, item):\n    return 1\n", "a value of type coroutine, not a number"),
    ],
)
def test_a_source_that_is_no_grader_is_told_so(python: PythonGraders, source: str, told: str) -> None:
    done = _run(python, source)
    assert done.reward is None and done.fault == "grader"
    assert told in (done.message or "")
    assert done.errors.python_grader_runtime_error
    assert done.errors.python_grader_runtime_error_details == done.message


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 'yes'", "grade returned a str ('yes'), not a number"),
        ("return True", "grade returned the bool True, not a number"),
        ("return None", "grade returned None, not a number"),
        ("return [1.0]", "grade returned a value of type list, not a number"),
        ("import numpy\nreturn numpy.float32(1)", "a value of type float32, not a number"),
        ("return float('nan')", "grade returned nan, not a finite number"),
        ("return float('inf')", "grade returned inf, not a finite number"),
        ("return 10 ** 400", "too large to be a reward"),
        ("return 'x' * 50_000_000", "grade returned a str"),
        ("return item['label']", "KeyError: 'label'"),
        ("return (lambda one: 1)()", "missing 1 required positional argument: 'one'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os\nos._exit(0)", "ended without an answer"),
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
        ("import os\nos.abort()", "died of SIG"),
        ("import time\ntime.sleep(60)", "ran longer than 2 seconds"),
        ("while True: pass", "ran longer than 2 seconds"),
        ("bytearray(4 * 1024 ** 3)", "MemoryError"),
        ("import os\nos.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['id'])", "PermissionError"),
        ("import socket\nsocket.socket()", "PermissionError"),
        ("open('/etc/passwd').read()", "Error: [Errno"),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "PermissionError"),
        ("class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd", "Odd"),
        ("def again(n): return again(n + 1)\nreturn again(0)", "RecursionError"),
        ("return sample['output_text'].encode('utf-8').nothing", "AttributeError"),
    ],
)
def test_what_goes_wrong_in_a_call_is_the_graders_own_error_and_the_next_call_is_clean(
    python: PythonGraders, body: str, told: str
) -> None:
    done = _graded(python, body)
    assert (done.reward, done.fault) == (None, "grader")
    assert told in (done.message or "")
    assert done.errors.python_grader_runtime_error_details == done.message
    assert _graded(python, "return 0.5") == Grade(reward=0.5)


def test_a_traceback_is_the_users_own_with_its_lines(python: PythonGraders) -> None:
    source = (
        "def helper(row):\n    return row['answer']\n\n\ndef grade(sample, item):\n    return helper(item)\n"
    )
    assert _run(python, source).message == (
        "Traceback (most recent call last):\n"
        '  File "grader.py", line 6, in grade\n'
        "    return helper(item)\n"
        "           ^^^^^^^^^^^^\n"
        '  File "grader.py", line 2, in helper\n'
        "    return row['answer']\n"
        "           ~~~^^^^^^^^^^\n"
        "KeyError: 'answer'"
    )


def test_a_long_traceback_keeps_its_end(python: PythonGraders) -> None:
    done = _graded(python, "raise ValueError('x' * 5000 + 'the end')")
    assert (done.message or "").endswith("the end")
    assert len(done.message or "") < 2000


def test_nothing_of_a_call_is_left_for_the_next(python: PythonGraders) -> None:
    """The same warm process; modules, builtins and files of the first call are gone."""
    source = (
        "import builtins, json, os, pathlib\n"
        "count = 0\n"
        "def grade(sample, item):\n"
        "    global count\n"
        "    count += 1\n"
        "    seen = count + hasattr(builtins, 'mark') + hasattr(json, 'mark') + os.path.exists('mark')\n"
        "    builtins.mark = json.mark = 1\n"
        "    try:\n"
        "        pathlib.Path('mark').write_text('x')\n"
        "    except OSError:\n"
        "        pass\n"
        "    return seen\n"
    )
    for _ in range(3):
        assert _run(python, source) == Grade(reward=1.0)


def test_scratch_can_be_written_where_there_is_one(python: PythonGraders) -> None:
    """Level B has no writable folder at all."""
    body = "import tempfile\nwith tempfile.NamedTemporaryFile() as f:\n    return f.write(b'xy')"
    done = _graded(python, body)
    if python.sandbox.level == "A":
        assert done == Grade(reward=2.0)
    else:
        assert "FileNotFoundError: [Errno 2] No usable temporary directory" in (done.message or "")


@pytest.mark.parametrize("level", [level for level in LEVELS if level == "A"])
def test_scratch_is_a_gigabyte_and_no_more(level: Level) -> None:
    """As at OpenAI, with room for one file of that size, and empty again in the next call."""
    source = (
        "import os\n"
        "def grade(sample, item):\n"
        "    if os.listdir('.'):\n"
        "        return -1\n"
        "    written, piece = 0, bytes(1024 * 1024)\n"
        "    try:\n"
        "        with open('all', 'wb', buffering=0) as out:\n"
        "            while written < 2000:\n"
        "                out.write(piece)\n"
        "                written += 1\n"
        "    except OSError:\n"
        "        pass\n"
        "    return written\n"
    )
    with PythonGraders(sandbox(level), limits=Limits(seconds=60.0), processes=1) as runner:
        assert [_run(runner, source).reward for _ in range(2)] == [1024.0, 1024.0]


@pytest.mark.parametrize(
    ("gigabytes", "cores", "memory", "scratch"),
    [(64, 2, 2048, 1024), (8, 4, 682, 341), (2, 8, 512, 256)],
)
def test_a_call_gets_its_share_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, cores: int, memory: int, scratch: int
) -> None:
    """Units: MB of the call's memory and of its scratch, which is memory too."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 1024**3 // 4096}
    monkeypatch.setattr("app.graders.python.os.sysconf", sizes.__getitem__)
    monkeypatch.setattr("app.graders.python._CORES", cores)
    limits = limits_of(Settings())
    assert (limits.memory_bytes // 1024**2, limits.scratch_bytes // 1024**2) == (memory, scratch)


def test_a_grader_runs_the_same_in_every_process() -> None:
    """The order of a set depends on the hash seed, and a reward may depend on the order."""
    source = "def grade(sample, item):\n    return hash('a') % 1000003\n"
    rewards = set()
    for _ in range(3):
        with PythonGraders(sandbox(LEVELS[-1]), limits=LIMITS, processes=1) as runner:
            rewards.add(_run(runner, source).reward)
    assert len(rewards) == 1


def test_a_dead_process_is_infrastructure_and_the_next_call_has_a_new_one() -> None:
    with PythonGraders(sandbox(LEVELS[-1]), limits=LIMITS, processes=1) as runner:
        source = "def grade(sample, item):\n    return 1\n"
        assert _run(runner, source).reward == 1.0
        warm = runner._warm[source]
        zygote = warm._slots.get()
        assert zygote is not None
        warm._slots.put(zygote)
        zygote._process.kill()
        zygote._process.wait()
        done = _run(runner, source)
        assert (done.reward, done.fault) == (None, "infrastructure")
        assert done.errors.python_grader_server_error
        assert done.errors.python_grader_server_error_type == "sandbox"
        assert _run(runner, source) == Grade(reward=1.0)


def test_calls_run_at_once_up_to_the_number_of_processes() -> None:
    """Each call sleeps; the second one began before the first had ended."""
    source = (
        "import time\n"
        "def grade(sample, item):\n"
        "    begun = time.time()\n"
        "    time.sleep(0.3)\n"
        "    return begun\n"
    )
    with PythonGraders(sandbox(LEVELS[-1]), limits=LIMITS, processes=2) as runner:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):  # the first round starts the two processes
                grades = list(pool.map(lambda _: _run(runner, source), range(2)))
        first, second = sorted(done.reward or 0.0 for done in grades)
        assert 0 < first <= second < first + 0.3


def test_few_sources_are_kept_warm_and_closing_ends_every_process() -> None:
    runner = PythonGraders(sandbox(LEVELS[-1]), limits=LIMITS, processes=1)
    pids = []
    for number in range(MOST_SOURCES + 2):
        source = f"def grade(sample, item):\n    return {number}\n"
        assert _run(runner, source).reward == number
        zygote = runner._warm[source]._slots.queue[0]
        assert zygote is not None
        pids.append(zygote.pid)
    assert len(runner._warm) == MOST_SOURCES
    runner.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_zygote_ends_with_the_service(python: PythonGraders) -> None:
    """A service that was killed closes its end of the channel; nothing else tells the zygote."""
    source = "import time\ndef grade(sample, item):\n    time.sleep(60)\n"
    zygote = python.sandbox.start(source, Limits(seconds=60))
    sender = threading.Thread(target=lambda: zygote._channel.sendall(_call_frame()))
    sender.start()
    sender.join()
    time.sleep(0.1)
    zygote._channel.close()
    assert zygote._process.wait(timeout=10) is not None
    zygote.close()


def _call_frame() -> bytes:
    head, body = json.dumps({"seconds": 60}).encode(), json.dumps([{}, {}]).encode()
    return len(head).to_bytes(4, "big") + head + len(body).to_bytes(4, "big") + body


def test_the_single_door_runs_python_in_a_multi_grader(python: PythonGraders) -> None:
    grader = parse_grader(
        {
            "type": "multi",
            "graders": {
                "code": {"type": "python", "source": "def grade(sample, item):\n    return item['worth']\n"},
                "same": {
                    "type": "string_check", "operation": "eq",
                    "input": "{{sample.output_text}}", "reference": "hello",
                },
            },
            "calculate_output": "(code + same) / 2",
        }
    )  # fmt: skip
    done = grade(
        grader, item={"worth": 0.5}, output_text="hello", json_expected=False, means=Means(python=python)
    )
    assert (done.reward, done.parts) == (0.75, {"code": 0.5, "same": 1.0})
    broken = grade(grader, item={}, output_text="hello", json_expected=False, means=Means(python=python))
    assert (broken.reward, broken.fault) == (None, "grader")
    assert broken.errors.python_grader_runtime_error
    assert "KeyError: 'worth'" in (broken.message or "")


def test_without_a_sandbox_nothing_is_run() -> None:
    grader = parse_grader({"type": "python", "source": "def grade(sample, item):\n    return 1\n"})
    done = grade(grader, item={}, output_text="", json_expected=False)
    assert (done.reward, done.fault) == (None, "infrastructure")
    assert done.errors.python_grader_server_error


@pytest.mark.parametrize(
    ("source", "told"),
    [("#" * 256_000, "less than 256 kB"), ("#\ud800", "valid string"), ("#\x00", "NUL")],
)
def test_a_source_that_cannot_be_sent_is_refused(source: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as refused:
        parse_grader({"type": "python", "source": source}, param="grader")
    assert refused.value.param == "grader.source"


def test_the_longest_source_runs(python: PythonGraders) -> None:
    source = "def grade(sample, item):\n    return 1\n"
    assert _run(python, source + "#" * (255_999 - len(source))) == Grade(reward=1.0)


def test_a_data_folder_that_graders_could_read_closes_the_sandbox(tmp_path: Path) -> None:
    """Fail closed: the folder of packages holds the data folder."""
    settings = Settings(data=tmp_path / "packages" / "data", grader_packages=tmp_path / "packages")
    settings.root.mkdir(parents=True)
    with pytest.raises(SandboxUnavailable, match="lies under") as refused:
        PythonGraders.open(settings)
    assert (refused.value.status, refused.value.code) == (503, "grader_sandbox_unavailable")


def test_open_takes_the_best_level_and_its_limits_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", grader_packages=PACKAGES, grader_seconds=1.0)
    with PythonGraders.open(settings) as runner:
        assert runner.sandbox.level == LEVELS[0]
        assert "10 of 10 attacks held" in runner.sandbox.description
        late = _graded(runner, "while True: pass")
        assert "longer than 1 seconds" in (late.message or "")
        assert late.timed_out


def test_sources_may_come_and_go_while_others_are_in_use() -> None:
    """More sources than are kept, from more threads than there are processes: none waits for ever."""
    sources = [f"def grade(sample, item):\n    return {n}\n" for n in range(MOST_SOURCES + 2)]
    with PythonGraders(sandbox(LEVELS[-1]), limits=LIMITS, processes=1) as runner:
        with ThreadPoolExecutor(8) as pool:
            wanted = [n % len(sources) for n in range(48)]
            found = list(pool.map(lambda n: _run(runner, sources[n]).reward, wanted))
        assert found == wanted
        assert len(runner._warm) <= 8

"""Two processes that share a run, started by torchrun over gloo, against one process that has it alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.worker.engine.conftest import disturb, prompts_for, settings
from tests.worker.engine.test_reinforcement import TEXTS, letters
from worker.engine.errors import NonFinite, OutOfMemory
from worker.engine.parallel import Alone
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
CHANGES = {"total_steps": 3, "kl_beta": 0.05, "eval_interval": 2, "max_completion_tokens": 8}


def run_shared(model: Path, folder: Path, batch_size: int, parallel: Alone) -> None:
    """Train a little and write down what this process ends with and reported."""
    config = settings(**CHANGES, batch_size=batch_size)
    policy = Policy.load(model, config=config)
    disturb(policy, 0.1)
    prompts = prompts_for(policy, *TEXTS)
    run = Reinforcement(
        policy,
        train_prompts=prompts,
        valid_prompts=prompts[:3],
        score=letters,
        config=config,
        parallel=parallel,
    )
    gradients, started = [], weights(policy)
    apply = run.optimizer.apply

    def watched() -> float | None:
        gradients.append(torch.cat([one.grad.flatten() for one in policy.adapter.values()]))
        return apply()

    run.optimizer.apply = watched  # type: ignore[method-assign]
    told = []
    for report in run.steps():
        valid = report.validation.rollouts if report.validation else ()
        told.append(
            {
                "answers": [list(one.rollout.token_ids) for one in (*report.rollouts, *valid)],
                "advantages": [one.advantage for one in report.rollouts],
                "loss": report.metrics.loss,
                "kl": report.metrics.kl,
                "entropy": report.metrics.entropy,
                "grad_norm": report.metrics.grad_norm,
            }
        )
    run.save_checkpoint(folder / f"rank-{parallel.rank}")
    (folder / f"rank-{parallel.rank}.json").write_text(json.dumps(told))
    numbers = {f"gradient {step}": one for step, one in enumerate(gradients)}
    save_file({**numbers, "moved": weights(policy) - started}, folder / f"rank-{parallel.rank}.safetensors")


def weights(policy: Policy) -> torch.Tensor:
    """Return a copy of the adapter's weights, end to end."""
    return torch.cat([one.detach().flatten() for one in policy.adapter.values()])


PROGRAM = """
import sys
from pathlib import Path
import torch.distributed as dist
from tests.worker.engine.test_parallel import run_shared
from worker.engine.parallel import Together

dist.init_process_group("gloo")
run_shared(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Together(dist.group.WORLD))
dist.destroy_process_group()
"""


# Of three prompts a step one of two processes has twice the other's, of one the other has none.
@pytest.mark.parametrize("batch_size", [3, 1])
def test_two_processes_make_the_update_of_one(tiny_model: Path, tmp_path: Path, batch_size: int) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    started = subprocess.run(
        [sys.executable, *TORCHRUN, str(program), str(tiny_model), str(shared), str(batch_size)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr[-3000:]
    run_shared(tiny_model, alone, batch_size, Alone())
    told_alone = json.loads((alone / "rank-0.json").read_text())
    for rank in (0, 1):
        told = json.loads((shared / f"rank-{rank}.json").read_text())
        for ours, theirs in zip(told, told_alone, strict=True):
            assert ours["answers"] == theirs["answers"]
            assert ours["advantages"] == theirs["advantages"]
            for name in ("loss", "kl", "entropy", "grad_norm"):
                assert abs(ours[name] - theirs[name]) < 1e-5
    files = [folder / "adapter_model.safetensors" for folder in (shared / "rank-0", shared / "rank-1")]
    assert files[0].read_bytes() == files[1].read_bytes()
    ours, theirs = (load_file(folder / "rank-0.safetensors") for folder in (shared, alone))
    assert ours.keys() == theirs.keys() >= {"moved", "gradient 0", "gradient 1"}
    for name, expected in theirs.items():
        # Before the optimizer all is rounding. Adam divides each gradient by its own size, so where one is
        # next to nothing its rounding moves the weight: that shows in single weights, little in the whole.
        off = float((ours[name] - expected).norm() / expected.norm())
        assert off < (1e-4 if name == "moved" else 1e-5), f"{name} differs by {off:.2g} of its size"


FAILING = """
import gc
import os
import sys
from pathlib import Path
import torch.distributed as dist
from tests.worker.engine.test_parallel import fail_apart
from worker.engine.parallel import Together

dist.init_process_group("gloo")
fail_apart(Path(sys.argv[1]), Together(dist.group.WORLD))
# What was raised knows frames that know the group, and gloo aborts where that outlives its end.
gc.collect()
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""


def fail_apart(folder: Path, parallel: Alone) -> None:
    """Let one process fail in several ways and write down what each of them sees."""

    def fail(error: Exception) -> Callable[[], int]:
        def work() -> int:
            if parallel.rank:
                raise error
            return 1

        return work

    seen = [parallel.attempt(lambda: parallel.rank)]
    for error in (NonFinite("no number"), OutOfMemory("too much"), ValueError("a grader's")):
        try:
            parallel.attempt(fail(error))
        except Exception as problem:  # boundary: to be written down
            seen.append(f"{type(problem).__name__}: {problem}")
    (folder / f"seen-{parallel.rank}.json").write_text(json.dumps(seen))


def test_where_one_process_fails_no_other_waits(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FAILING)
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    other = "EngineError: another process of this run failed: "
    assert first == [0, "NonFinite: no number", f"{other}too much", f"{other}a grader's"]
    assert second == [1, "NonFinite: no number", "OutOfMemory: too much", "ValueError: a grader's"]


def test_shares_come_back_in_order() -> None:
    things = list("abcde")

    class First(Alone):
        size = 2

    class Second(First):
        rank = 1

    assert First().own(things) == ["a", "c", "e"]
    assert Second().own(things) == ["b", "d"]
    assert Alone().all(Alone().own(things)) == things


def test_one_process_leaves_its_gradients_as_they_are() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    Alone().add_gradients([parameter], 1.0)
    assert parameter.grad.tolist() == [1.0, 2.0]

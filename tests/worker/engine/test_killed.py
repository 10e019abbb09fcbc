"""A run whose process is killed again and again ends with the same bytes as one that was left alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.worker.engine.conftest import disturb, prompts_for, settings
from tests.worker.engine.test_reinforcement import TEXTS, letters
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement

STEPS = 12
# Slows the child between steps, so that kills land inside the run and not only before it.
PAUSE = 0.05


def train(model: Path, folder: Path, *, pause: float = 0.0) -> None:
    """Train from the newest checkpoint in a folder to the end, saving one after every step."""
    config = settings(total_steps=STEPS)
    policy = Policy.load(model, config=config)
    disturb(policy, 0.05)
    saved = sorted(folder.glob("step-*"))
    run = Reinforcement(
        policy,
        train_prompts=prompts_for(policy, *TEXTS),
        valid_prompts=(),
        score=letters,
        config=config,
        resume=saved[-1] if saved else None,
    )
    for report in run.steps():
        run.save_checkpoint(folder / f"step-{report.step:04}")
        time.sleep(pause)


def test_kills_at_random_moments_change_no_bit(tiny_model: Path, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    threads = torch.get_num_threads()
    train(tiny_model, alone)
    torch.set_num_threads(threads)
    moments = random.Random(4)
    code = (
        "import sys; from pathlib import Path; from tests.worker.engine.test_killed import PAUSE, train; "
        "train(Path(sys.argv[1]), Path(sys.argv[2]), pause=PAUSE)"
    )
    kills = 0
    while not (killed / f"step-{STEPS:04}").exists():
        known = len(list(killed.glob("step-*")))
        with subprocess.Popen([sys.executable, "-c", code, str(tiny_model), str(killed)]) as child:
            if kills < 3:
                while len(list(killed.glob("step-*"))) < known + 2 and child.poll() is None:
                    time.sleep(0.01)
                time.sleep(moments.random() * 2 * PAUSE)
                child.kill()
                kills += 1
            assert child.wait() in (0, -signal.SIGKILL)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(folder / f"step-{STEPS:04}" / name) for folder in (killed, alone))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert kills

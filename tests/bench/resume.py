"""Whether a run that is killed again and again ends with the same bytes as one that was left alone.

`python -m tests.bench.resume` trains a random model twice in processes of its own, the second under `kill -9`
at random moments: while it starts, samples, trains, validates and writes checkpoints. It prints one line and
exits non-zero when a byte of the last checkpoint differs. `--model DIR` takes a real model instead.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from worker.engine import machine

machine.wait_briefly()

from tests.tiny_model import build_tiny_model
from worker.engine.config import TrainingConfig
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt, Rollout, StepReport

KILLS, STEPS, SEED = 20, 30, 2412
READY, TOLD = "ready", "steps.txt"
# One kill in so many comes before training begins; the others within this many steps of its beginning.
EARLY, REACH = 5, 2.5
TEXTS = ("a", "bb", "what now", "12 and 13", "order 7", "a longer question than all the others here", "x?")
WORDS = {"role": "system", "content": "Answer with small letters."}


def main() -> int:
    """Run the bench or, with `--train`, one of its processes; return the exit code."""
    options = _options()
    if options.train:
        train(options.model, options.train, options.steps)
        return 0
    with tempfile.TemporaryDirectory(prefix="tunesmith-resume-") as place:
        root = Path(place)
        model = options.model or build_tiny_model(root / "model", hidden=128, layers=4)
        seconds = _alone(model, root / "alone", options.steps)
        kills = _killed(model, root / "killed", options.steps, options.kills, seconds)
        different = _different(root / "alone", root / "killed", options.steps)
        parted = _parted(root / "alone", root / "killed")
    identical = not different and kills >= options.kills
    print(f"RESUME kills {kills}, identical {str(identical).lower()}")
    if different:
        print(f"  different: {', '.join(different)}; {parted}")
    if kills < options.kills:
        print(f"  the run ended after {kills} kills: give it more --steps")
    return 0 if identical else 1


def train(model: Path, folder: Path, steps: int) -> None:
    """Train from the newest checkpoint in a folder to the end; keep the newest alone, as the runner does."""
    machine.keep_memory()
    config = TrainingConfig(
        seed=SEED,
        batch_size=4,
        samples_per_prompt=4,
        total_steps=steps,
        max_completion_tokens=24,
        learning_rate=2e-3,
        lora_rank=8,
        kl_beta=0.01,
        eval_interval=4,
        threads=2,
        # Small enough that a step takes several waves and micro-batches.
        micro_batch_tokens=300,
        sampling_cache_mib=1,
    )
    policy = Policy.load(model, config=config)
    prompts = [
        Prompt(index, policy.encode_chat([WORDS, {"role": "user", "content": text}]))
        for index, text in enumerate(TEXTS)
    ]
    saved = sorted(folder.glob("step-*"))
    run = Reinforcement(
        policy,
        train_prompts=prompts,
        valid_prompts=prompts[:2],
        score=_letters,
        config=config,
        resume=saved[-1] if saved else None,
    )
    print(READY, flush=True)
    for report in run.steps():
        _tell(policy, report, folder)
        if report.step:
            run.save_checkpoint(_step(folder, report.step))
            for old in saved:
                shutil.rmtree(old)
            saved = [_step(folder, report.step)]


def _tell(policy: Policy, report: StepReport, folder: Path) -> None:
    """Write down a step's digests: its answers, their log-probs, and the weights it left."""
    answers = [one.rollout for one in report.rollouts]
    texts, logprobs = [one.token_ids for one in answers], [one.logprobs for one in answers]
    weights = b"".join(tensor.detach().numpy().tobytes() for tensor in policy.adapter.values())
    digests = (
        sha256(part).hexdigest()[:8] for part in (repr(texts).encode(), repr(logprobs).encode(), weights)
    )
    with (folder / TOLD).open("a") as file:
        file.write(" ".join((f"{report.step:04}", *digests)) + "\n")


def _letters(rollouts: Sequence[Rollout]) -> list[float | None]:
    """Grade by the share of small letters; a few grades are missing, as in life."""
    return [
        None
        if (one.step + one.item_index + one.sample_index) % 11 == 0
        else sum("a" <= letter <= "z" for letter in one.text) / len(one.token_ids)
        for one in rollouts
    ]


def _alone(model: Path, folder: Path, steps: int) -> float:
    """Train undisturbed; return the seconds of one step."""
    with _start(model, folder, steps) as child:
        _await_ready(child)
        started = time.monotonic()
        if child.wait():
            raise SystemExit("the undisturbed run failed")
    return (time.monotonic() - started) / steps


def _killed(model: Path, folder: Path, steps: int, most: int, step_seconds: float) -> int:
    """Train under `kill -9`, then to the end; return how many kills met a living process."""
    moments = random.Random(SEED)
    kills, startup = 0, 1.0
    while not _step(folder, steps).exists():
        started = time.monotonic()
        with _start(model, folder, steps) as child:
            if kills < most:
                if kills % EARLY == EARLY - 1:
                    time.sleep(moments.random() * startup)
                else:
                    _await_ready(child)
                    startup = time.monotonic() - started
                    time.sleep(moments.random() * REACH * step_seconds)
                child.kill()
            code = child.wait()
            kills += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                raise SystemExit(f"a resumed run failed with exit code {code}")
    return kills


def _start(model: Path, folder: Path, steps: int) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.resume", "--train", str(folder), "--model", str(model)]
    return subprocess.Popen([*command, "--steps", str(steps)], stdout=subprocess.PIPE, text=True)


def _await_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    if child.stdout.readline().strip() != READY:
        raise SystemExit(f"the training process ended before its first step, with exit code {child.wait()}")


def _different(alone: Path, killed: Path, steps: int) -> list[str]:
    """Return the files of the last checkpoint that are not the same in both folders, to the byte."""
    ours, theirs = (
        {path.name: path.read_bytes() for path in _step(folder, steps).iterdir()}
        for folder in (alone, killed)
    )
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _parted(alone: Path, killed: Path) -> str:
    """Say at which step the two runs parted, and in what: a step that was killed may be told of twice."""
    expected = {line.split()[0]: line.split()[1:] for line in (alone / TOLD).read_text().splitlines()}
    for line in (killed / TOLD).read_text().splitlines():
        step, *found = line.split()
        for name, ours, theirs in zip(
            ("answers", "log-probs", "weights"), found, expected[step], strict=True
        ):
            if ours != theirs:
                return f"the first difference is in the {name} of step {int(step)}"
    return "no step told of a difference"


def _step(folder: Path, step: int) -> Path:
    return folder / f"step-{step:04}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--train", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

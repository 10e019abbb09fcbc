"""How fast the engine trains, beside TRL's `GRPOTrainer` on the same work, step by step in turn.

Each side is a process of its own environment's Python. TRL's settings are the best of a small printed
sweep. The speeds are aims; other prompts, other answer lengths, a skipped group or a step without an update
on either side is a failed claim. Run by `make bench-engine`; `--ours` times our side alone. On a GPU machine
it runs with the Python at hand: models of random weights, and `BENCH_WHEELS` may name a folder of wheels to
import from.
"""

import argparse
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tests.bench.engine_figures import figures, problems_of
from tests.bench.engine_sides import ROOT, BrokenSide, Side, running
from tests.bench.engine_work import SHAPES, Shape, Work

TRL_PYTHON = ROOT / ".bench" / "bin" / "python"
WARM = 2
AIMS = {"ratio": "at least 4 (a GPU: 5)", "floor_ratio": "at most 1.6", "peak": "at most 0.6 of TRL's"}
# What a sweep starts from, and what it tries after the batch: each is kept when it is faster. The last two
# are what our side has from `worker.engine.machine`.
PLAIN = {
    "batch": 0,
    "checkpointing": False,
    "attention": "sdpa",
    "cache": None,
    "continuous_batching": False,
    "liger": False,
    "compile": False,
    "spinning": False,
    "kept_memory": False,
}
TRIED_ON_CPU: tuple[dict[str, Any], ...] = (
    {"checkpointing": True},
    {"attention": "eager"},
    {"cache": "static"},
    {"spinning": True},
    {"kept_memory": True},
)
TRIED_ON_GPU: tuple[dict[str, Any], ...] = (
    {"cache": "static"},
    {"continuous_batching": True},
    {"liger": True},
    {"compile": True},
)


def main() -> int:
    """Print a line for each model and shape; 1 when a claim failed."""
    arguments = _arguments()
    held = True
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        bench = Bench(arguments, Path(name))
        for model in _models(arguments, Path(name)):
            for shape in arguments.shape or SHAPES.values():
                held = bench.run(shape, model) and held
    if not (arguments.ours or arguments.trl):
        print(f"Aims: {json.dumps(AIMS)}")
    return 0 if held else 1


# Seconds of a step next to which the first one's warming up does not count.
_LONG = 10.0


class Bench:
    """What all shapes of one run share: the sides' Pythons, the wheels, the counts."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.wheels = _unpacked(folder)
        self.python = Path(sys.executable)
        has_own = TRL_PYTHON.exists() and self.wheels is None
        self.trl_python = TRL_PYTHON if has_own else self.python
        self.steps = arguments.steps

    def run(self, shape: Shape, model: Path) -> bool:
        """Measure one shape on the sides asked for, print, and say whether the claims held."""
        if self.arguments.ours:
            measured, problems = self._alone("engine_ours", self._work(shape, model, {}))
            _print("OURS", {"shape": shape.name, **measured})
            return _held(shape, problems)
        settings = self.arguments.settings or self._sweep(shape, model)
        if self.arguments.trl:
            measured, problems = self._alone("engine_trl", self._work(shape, model, settings))
            _print("TRL", {"shape": shape.name, **measured, "trl_settings": _told(settings)})
            return _held(shape, problems)
        return self._compare(shape, model, settings)

    def _compare(self, shape: Shape, model: Path, settings: dict[str, Any]) -> bool:
        ours_work, trl_work = self._work(shape, model, {}), self._work(shape, model, settings)
        steps: list[tuple[dict[str, Any], dict[str, Any]]] = []
        with (
            self._running("engine_ours", ours_work) as ours,
            self._running("engine_trl", trl_work) as theirs,
        ):
            for _ in range(WARM + self.steps):
                steps.append((ours.step(), theirs.step()))
            mine, others = (list(taken) for taken in zip(*steps, strict=True))
            our = figures(shape, ours.ready, mine[WARM:], ours.end())
            trl = figures(shape, theirs.ready, others[WARM:], theirs.end())
        work = ours.ready["prompts"]
        problems = [f"ours: {said}" for said in problems_of(shape, work, mine)]
        problems += [f"TRL: {said}" for said in problems_of(shape, work, others)]
        problems += [
            f"{fact}: ours {ours.ready[fact]}, TRL's {theirs.ready[fact]}"
            for fact in ("dtype", "threads")
            if ours.ready[fact] != theirs.ready[fact]
        ]
        line = {
            "shape": shape.name,
            "model": model.name,
            "samples_per_s": our["samples_per_s"],
            "trl_samples_per_s": trl["samples_per_s"],
            "ratio": round(trl["step_s"] / our["step_s"], 2),
            "floor_ratio": our["floor_ratio"],
            "peak_mb": our["peak_mb"],
            "trl_peak_mb": trl["peak_mb"],
            "trl_settings": _told(settings),
            "step_s": our["step_s"],
            "trl_step_s": trl["step_s"],
            "share": our["share"],
            "trl_share": trl["share"],
            "matrix_gflops": our["matrix_gflops"],
        }
        if our["gpu_peak_mb"] is not None:
            line |= {"gpu_peak_mb": our["gpu_peak_mb"], "trl_gpu_peak_mb": trl["gpu_peak_mb"]}
        _print("ENGINE", line)
        return _held(shape, problems)

    def _sweep(self, shape: Shape, model: Path) -> dict[str, Any]:
        """Return the fastest of TRL's settings: the batch first, then one by one what else may help."""
        best: dict[str, Any] = {}
        least = float("inf")
        batches = [{**PLAIN, "batch": shape.samples // parts} for parts in (1, 2, 4)]
        tried = TRIED_ON_GPU if torch.cuda.is_available() else TRIED_ON_CPU
        for change in (*batches, *tried):
            settings = {**best, **change}
            try:
                seconds = self._try(shape, model, settings, least)
            except BrokenSide as problem:
                last = str(problem).strip().splitlines()[-1]
                _print("SWEEP", {"shape": shape.name, "trl_settings": _told(settings), "failed": last[-200:]})
                continue
            _print(
                "SWEEP",
                {"shape": shape.name, "trl_step_s": round(seconds, 2), "trl_settings": _told(settings)},
            )
            if seconds < least:
                best, least = settings, seconds
        if not best:
            raise SystemExit("TRL's side did not run with any settings.")
        return best

    def _try(self, shape: Shape, model: Path, settings: dict[str, Any], least: float) -> float:
        """Return the seconds of a second step, or of the first when it is long or hopeless already."""
        with self._running("engine_trl", self._work(shape, model, settings)) as side:
            first = float(side.step()["seconds"])
            return first if first > min(1.5 * least, _LONG) else float(side.step()["seconds"])

    def _alone(self, module: str, work: Work) -> tuple[dict[str, Any], list[str]]:
        with self._running(module, work) as side:
            steps = [side.step() for _ in range(work.steps)]
            for number, step in enumerate(steps, start=1):
                parts = {name: round(step[name], 2) for name in ("sampling", "training", "seconds")}
                _print("STEP", {"step": number, **parts})
            end = side.end()
        measured = figures(work.shape, side.ready, steps[1:] or steps, end)
        return measured, problems_of(work.shape, side.ready["prompts"], steps)

    def _running(self, module: str, work: Work) -> AbstractContextManager[Side]:
        python = self.python if module == "engine_ours" else self.trl_python
        environment = environment_of(work.settings) if module == "engine_trl" else {}
        return running(module, python, work.to_json(), wheels=self.wheels, environment=environment)

    def _work(self, shape: Shape, model: Path, settings: dict[str, Any]) -> Work:
        extra = 0 if self.arguments.ours or self.arguments.trl else WARM
        return Work(shape, str(model), self.steps + extra, self.arguments.threads, settings)


def environment_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return what our side asks of the machine for itself, put as variables: TRL's may have it too."""
    chosen = {}
    if not settings["spinning"] and "OMP_WAIT_POLICY" not in os.environ:
        chosen["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "2000")
    if settings["kept_memory"]:
        chosen |= {"MALLOC_MMAP_THRESHOLD_": f"{32 << 20}", "MALLOC_TRIM_THRESHOLD_": f"{2**31 - 1}"}
    return chosen


def _held(shape: Shape, problems: list[str]) -> bool:
    for problem in problems:
        print(f"CLAIM FAILED {shape.name}: {problem}", flush=True)
    return not problems


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings worth a word: the batch, the attention, and what is switched on."""
    return {name: value for name, value in settings.items() if value or name == "checkpointing"}


def _print(word: str, facts: dict[str, Any]) -> None:
    print(word, json.dumps(facts), flush=True)


def _models(arguments: argparse.Namespace, folder: Path) -> Iterator[Path]:
    if arguments.model:
        yield arguments.model
    elif arguments.shaped or torch.cuda.is_available():
        from tests.bench.shaped import build_shaped_model

        for name in arguments.shaped or ("smollm2-135m", "qwen3-1.7b"):
            yield build_shaped_model(folder / name, name)
    else:
        from app.core.settings import Settings
        from worker.models import fetch_default

        yield fetch_default(Settings().models)


def _unpacked(folder: Path) -> Path | None:
    """Unpack the wheels a machine without an installer was given, for both sides to import from."""
    if not (given := os.environ.get("BENCH_WHEELS")):
        return None
    # So named because dill, by which datasets hashes functions, takes modules elsewhere for the user's own.
    target = folder / "site-packages"
    for wheel in sorted(Path(given).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return target


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument("--ours", action="store_true", help="time our side alone")
    sides.add_argument("--trl", action="store_true", help="time TRL's side alone")
    parser.add_argument("--shape", type=SHAPES.__getitem__, action="append", help=", ".join(SHAPES))
    parser.add_argument("--steps", type=int, default=5, help="measured steps (alone: the first is warm-up)")
    parser.add_argument("--threads", type=int, help="of each side; by default torch's own choice")
    parser.add_argument("--model", type=Path, help="a model folder; by default the model store's")
    parser.add_argument("--shaped", action="append", help="random weights: smollm2-135m, qwen3-1.7b")
    parser.add_argument(
        "--settings",
        type=lambda text: {**PLAIN, **json.loads(text)},
        help='TRL\'s settings as JSON instead of the sweep: {"batch": 8, "checkpointing": true}',
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

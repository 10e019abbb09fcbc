"""What a slow grader adds to a step: grading runs while other answers are still being sampled.

Two runs of one seed take the same steps in turn, one judged at once, one by a judge that thinks for 200 ms an
answer (a real server on loopback, the scorer and the number of judgements at once a job has). That both give
the same answers and rewards is a claim; that the slow one adds less than 30% is an aim. Run by
`make bench-long`.
"""

import json
import os
import statistics
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.engine import machine

machine.wait_briefly()

from app.core.settings import Settings
from app.graders.spec import parse_grader
from app.services import graders
from tests.judge import JudgeServer, judging, scores
from worker.engine.config import TrainingConfig
from worker.engine.policy import Policy
from worker.engine.reinforcement import Reinforcement
from worker.engine.types import Prompt, StepReport
from worker.models import fetch_default
from worker.scoring import Scorer

ROWS = Path(__file__).resolve().parents[2] / "examples" / "order-numbers" / "train.jsonl"
SECONDS = 0.2
STEPS = int(os.environ.get("STEPS", "2"))
GRADER = {
    "type": "score_model",
    "model": "gpt-judge",
    "input": [{"role": "user", "content": "How good is this answer? {{sample.output_text}}"}],
}
CONFIG = TrainingConfig(
    seed=1,
    batch_size=8,
    samples_per_prompt=8,
    total_steps=STEPS + 1,
    max_completion_tokens=16,
)


def main() -> int:
    """Print the line; 1 when the slow judge changed an answer or a reward."""
    model = fetch_default(Settings().models)
    with run(model, 0.0) as quick, run(model, SECONDS) as slow:
        pairs = []
        for number in range(CONFIG.total_steps):
            pairs.append((next(quick), next(slow)))
            took = " and ".join(f"{report.metrics.iteration_seconds:.1f} s" for report in pairs[-1])
            print(f"  step {number + 1}: {took}", file=sys.stderr, flush=True)
    same = all(_taught(one) == _taught(other) for one, other in pairs)
    ours = [{name: _median(reports, name) for name in _TIMES} for reports in zip(*pairs[1:], strict=True)]
    at_once, graded = ours
    answers = len(pairs[0][0].rollouts)
    line = {
        "answers": answers,
        "grader_ms": round(SECONDS * 1000),
        "at_once": Settings().grader_concurrency,
        "sampling_s": at_once["sampling_seconds"],
        "step_s": at_once["iteration_seconds"],
        "step_with_grader_s": graded["iteration_seconds"],
        "waited_s": graded["grading_seconds"],
        "added": round(graded["iteration_seconds"] / at_once["iteration_seconds"] - 1, 3),
        "one_by_one_s": round(answers * SECONDS, 1),
        "same_answers": same,
    }
    print("OVERLAP", json.dumps(line), flush=True)
    print("Aim: added below 0.30")
    return 0 if same else 1


_TIMES = ("sampling_seconds", "grading_seconds", "iteration_seconds")


@contextmanager
def run(model: Path, delay: float) -> Iterator[Iterator[StepReport]]:
    """Yield a run's steps, graded by a judge of its own that thinks so long."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    policy = Policy.load(model, config=CONFIG)
    # Without the worked examples: answers of all lengths, and a step whose sampling takes about 5 s.
    asked = [[row["messages"][-1]] for row in rows]
    prompts = [Prompt(index, policy.encode_chat(messages)) for index, messages in enumerate(asked)]
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as folder, judging() as judge:
        judge.delay = delay
        judge.answer_to = _judgement
        settings = _settings(folder, judge)
        grader = parse_grader(GRADER)
        items = {"train": dict(enumerate(rows))}
        with (
            graders.means(settings, grader, concurrency=settings.grader_concurrency) as means,
            Scorer(
                grader,
                items,
                json_expected=False,
                errors_are_zero=False,
                means=means,
                concurrency=settings.grader_concurrency,
            ) as scorer,
        ):
            yield Reinforcement(
                policy,
                train_prompts=prompts,
                valid_prompts=[],
                score=scorer,
                config=CONFIG,
                on_answer=scorer.begin,
            ).steps()


def _settings(folder: str, judge: JudgeServer) -> Settings:
    settings = Settings(data=Path(folder))
    judge.write_providers(settings.root)
    return settings


def _judgement(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a grade that is the answer's own, whenever it is asked for."""
    return scores(zlib.crc32(json.dumps(asked["messages"]).encode()) % 5 / 4)


def _taught(report: StepReport) -> list[tuple[tuple[int, ...], float | None]]:
    return [(scored.rollout.token_ids, scored.reward) for scored in report.rollouts]


def _median(reports: Any, name: str) -> float:
    return round(statistics.median(getattr(report.metrics, name) for report in reports), 2)


if __name__ == "__main__":
    sys.exit(main())

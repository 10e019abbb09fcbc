"""TRL's side of the engine's bench: `GRPOTrainer` as its documentation starts it, one step when told to.

`python -m tests.bench.engine_trl WORK` in the bench environment, started by `tests/bench/engine.py`. It
imports nothing of ours but the work; how its threads wait and its memory is kept is the driver's word. End
tokens are taken away from generation and from the trainer's mask.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from time import perf_counter
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from tests.bench.engine_work import (
    ALPHA,
    RANK,
    RATE,
    Work,
    fingerprint,
    orders,
    peak_mb,
    planted,
    prompt_texts,
    say,
)


class Told(TrainerCallback):
    """Begins each step when told to, and says what it took and did; ends the training with the orders."""

    def __init__(self) -> None:
        self.orders = orders()
        self.times: dict[str, float] = {}
        self.prompts: list[list[int]] = []
        self.answers: list[list[int]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if next(self.orders, self) is self:
            raise Done
        self.times.clear()
        self.answers.clear()
        self.prompts.clear()
        self.started = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = perf_counter() - self.started

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "reward" not in logs:
            return
        groups = args.generation_batch_size // args.num_generations
        sampling = self.times.get("sampling", 0.0)
        say(
            "step",
            seconds=self.seconds,
            prompts=fingerprint(self.prompts),
            lengths=sorted({len(answer) for answer in self.answers}),
            answers=len(self.answers),
            groups_skipped=round(float(logs["frac_reward_zero_std"]) * groups),
            updated=float(logs["grad_norm"]) > 0,
            sampling=sampling,
            training=self.seconds - sampling - self.times.get("grading", 0.0),
        )


class Done(Exception):
    """No more steps are wanted."""


def main() -> None:
    """Build the trainer and let it run as far as it is told to."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    work = Work.from_json(sys.argv[1])
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    told = Told()
    with tempfile.TemporaryDirectory() as folder:
        trainer, tokens, dtype = _trainer(work, folder, told)
        say(
            "ready",
            prompts=fingerprint(tokens),
            prompt_tokens=sum(map(len, tokens)),
            dtype=dtype,
            threads=torch.get_num_threads(),
        )
        with contextlib.suppress(Done):
            trainer.train()
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    say("end", peak_mb=peak_mb(), gpu_peak_mb=gpu)


def _trainer(work: Work, folder: str, told: Told) -> tuple[Any, list[list[int]], str]:
    shape, settings = work.shape, work.settings
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    model = AutoModelForCausalLM.from_pretrained(
        work.model, dtype=dtype, attn_implementation=settings["attention"]
    )
    texts = prompt_texts(shape, encode=lambda text: tokenizer(text).input_ids)
    batch = settings["batch"] or shape.samples
    config = GRPOConfig(
        output_dir=folder,
        max_steps=work.steps + 1,  # one more is asked for than told, so that the end is told too
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=shape.samples // batch,
        gradient_checkpointing=settings["checkpointing"],
        cache_implementation=settings["cache"],
        use_transformers_continuous_batching=settings["continuous_batching"],
        use_liger_kernel=settings["liger"],
        torch_compile=settings["compile"],
        bf16=cuda,
        num_generations=shape.answers,
        max_completion_length=shape.answer_tokens,
        temperature=1.0,
        beta=0.0,
        num_iterations=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        disable_dropout=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )
    trainer = GRPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        reward_funcs=_rewards(told.times),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[told],
    )
    trainer.eos_token_ids = [-1]
    trainer.generation_config.eos_token_id = None
    trainer.generation_kwargs["eos_token_id"] = None
    model.generation_config.eos_token_id = None
    _watch(trainer, told)
    return trainer, [tokenizer(text).input_ids for text in texts], str(dtype).removeprefix("torch.")


def _rewards(times: dict[str, float]) -> Any:
    def planted_rewards(completions: list[str], **_: Any) -> list[float]:
        started = perf_counter()
        rewards = [planted(index) for index in range(len(completions))]
        times["grading"] = times.get("grading", 0.0) + perf_counter() - started
        return rewards

    return planted_rewards


def _watch(trainer: Any, told: Told) -> None:
    """Time the trainer's sampling, and keep what was sampled for the driver's claims."""
    generate = trainer._generate_single_turn

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        result = generate(*args, **kwargs)
        told.times["sampling"] = told.times.get("sampling", 0.0) + perf_counter() - started
        told.prompts.extend(args[0])
        told.answers.extend(result[0])
        return result

    trainer._generate_single_turn = timed


if __name__ == "__main__":
    main()

"""TRL's side of the learning bench: train on a task and leave the adapter in a folder.

`python -m tests.bench.learning_trl ORDER` in the bench environment; ORDER is JSON: task, model, seed, rate,
settings, folder. TRL's own algorithm as its defaults have it; only what both sides share is set.
"""

import json
import os
import sys
import tempfile
import warnings
from typing import Any

# As our side waits.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from tests.bench.engine_work import ALPHA, RANK, say
from tests.bench.learning_tasks import Item, Task, task


class Curve(TrainerCallback):
    """Tells the mean reward of each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "reward" in logs:
            say("step", step=state.global_step, reward=float(logs["reward"]))


def main() -> None:
    """Train as told, save the adapter, say so."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    order = json.loads(sys.argv[1])
    work = task(order["task"])
    tokenizer = AutoTokenizer.from_pretrained(order["model"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=_model(order),
            args=_config(work, order, folder),
            train_dataset=Dataset.from_list([{"prompt": i.asked, "right": i.right} for i in work.train]),
            reward_funcs=_rewards(work),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Curve()],
        )
        prompts = _watch(trainer)
        say("ready")
        trainer.train()
        trainer.model.save_pretrained(order["folder"])
    expected = {_tokens(tokenizer, item) for item in work.train}
    say("end", answers=work.prompts * work.answers * work.steps, same_prompts=prompts <= expected)


def _model(order: dict[str, Any]) -> Any:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return AutoModelForCausalLM.from_pretrained(order["model"], dtype=dtype)


def _config(work: Task, order: dict[str, Any], folder: str) -> GRPOConfig:
    rows = work.prompts * work.answers
    batch = order["settings"].get("batch", rows // 2)
    return GRPOConfig(
        output_dir=folder,
        max_steps=work.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rows // batch,
        gradient_checkpointing=order["settings"].get("checkpointing", False),
        bf16=torch.cuda.is_available(),
        num_generations=work.answers,
        max_completion_length=work.answer_tokens,
        learning_rate=order["rate"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=order["seed"],
    )


def _rewards(work: Task) -> Any:
    def rewards(completions: list[Any], right: list[str], **_: Any) -> list[float]:
        texts = [said if isinstance(said, str) else said[0]["content"] for said in completions]
        return [work.reward(text, answer) for text, answer in zip(texts, right, strict=True)]

    return rewards


def _watch(trainer: Any) -> set[tuple[int, ...]]:
    """Keep what the trainer really asks its model."""
    asked: set[tuple[int, ...]] = set()
    generate = trainer._generate_single_turn

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.update(map(tuple, args[0]))
        return generate(*args, **kwargs)

    trainer._generate_single_turn = watched
    return asked


def _tokens(tokenizer: Any, item: Item) -> tuple[int, ...]:
    if isinstance(item.asked, str):
        return tuple(tokenizer(item.asked).input_ids)
    encoded = tokenizer.apply_chat_template(
        item.asked, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return tuple(encoded["input_ids"])


if __name__ == "__main__":
    main()

"""A tiny random model for the engine's tests, and small builders for configs and prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_model import build_tiny_model
from worker.engine.config import TrainingConfig
from worker.engine.policy import Policy
from worker.engine.types import Prompt

Load = Callable[..., Policy]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def settings(**changes: Any) -> TrainingConfig:
    """Return a small config; every test says what it cares about."""
    values: dict[str, Any] = {
        "seed": 7,
        "batch_size": 3,
        "samples_per_prompt": 4,
        "total_steps": 4,
        "max_completion_tokens": 5,
        "learning_rate": 5e-3,
        "lora_rank": 4,
        "threads": 1,
    }
    return TrainingConfig(**{**values, **changes})


@pytest.fixture
def load(tiny_model: Path) -> Load:
    """Load the tiny model; `trained=True` gives its adapter weights that change the answers."""

    def loaded(*, trained: bool = False, fast: bool = True, **changes: Any) -> Policy:
        policy = Policy.load(tiny_model, config=settings(**changes), fast=fast)
        if trained:
            disturb(policy)
        return policy

    return loaded


def disturb(policy: Policy, scale: float = 0.2) -> None:
    """Move every adapter weight a little, the same way each time."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.adapter.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


def prompts_for(policy: Policy, *texts: str) -> list[Prompt]:
    """Return one prompt a text, behind a common system turn."""
    system = {"role": "system", "content": "Answer."}
    return [
        Prompt(index, policy.encode_chat([system, {"role": "user", "content": text}]))
        for index, text in enumerate(texts)
    ]


def plain_logprobs(policy: Policy, prompt: Prompt, answer: tuple[int, ...]) -> torch.Tensor:
    """Return an answer's log-probs by the model's own attention: one text, no sharing."""
    causal = policy._causal
    ours = causal.config._attn_implementation == "tunesmith"
    if ours:
        causal.set_attn_implementation("eager")
    try:
        text = torch.tensor([[*prompt.token_ids, *answer]])
        logits = causal(input_ids=text, use_cache=False).logits[0]
    finally:
        if ours:
            causal.set_attn_implementation("tunesmith")
    start = len(prompt.token_ids)
    scores = logits[start - 1 : -1].log_softmax(-1)
    return scores.gather(1, text[0, start:, None])[:, 0]

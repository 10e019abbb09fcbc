"""The shared attention on other models' rules: sliding windows, soft caps, query norms, no grouped heads.

Each is a tiny random model of a real architecture, sampled and checked against its own attention.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.worker.engine.conftest import disturb, plain_logprobs, prompts_for, settings
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample

SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
MODELS: dict[str, Any] = {
    "mistral, window of 12": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=12)),
    "gemma2, soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(**GROUPED, sliding_window=12, attn_logit_softcapping=2.0, final_logit_softcapping=5.0)
    ),
    "qwen3, query norms": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}


@pytest.mark.parametrize("name", MODELS)
def test_sampled_logprobs_are_the_model_s_own(name: str, tiny_model: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MODELS[name]().save_pretrained(tmp_path)
    for part in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / part).write_bytes((tiny_model / part).read_bytes())
    policy = Policy.load(tmp_path, config=settings())
    disturb(policy, 0.05)
    prompts = prompts_for(policy, "a", "and a longer question", "bb")
    sampling = Sampling("train", 1, samples=2, max_tokens=20, temperature=1.0, seed=1)
    with policy.merged():
        rollouts = [rollout for wave in sample(policy, prompts, sampling) for rollout in wave]
    for rollout in rollouts:
        own = plain_logprobs(policy, prompts[rollout.item_index], rollout.token_ids)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), own.detach(), atol=2e-4, rtol=1e-4)

"""Answers under a JSON schema: valid, forced where forced, trained as they were drawn."""

import json
from typing import Any

import pytest
import torch

from tests.worker.engine.conftest import Load, prompts_for, settings
from worker.engine.batches import Answer, Group
from worker.engine.grammar import Grammar, replay
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.types import Rollout
from worker.engine.update import compute_gradient

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "pattern": "^[0-9]{2,4}$"},
        "team": {"enum": ["ab", "abc", "x"]},
    },
    "required": ["order", "team"],
    "additionalProperties": False,
}


def constrained(policy: Policy, max_tokens: int = 60) -> tuple[Grammar, list[Rollout]]:
    grammar = Grammar.from_json_schema(SCHEMA, policy.tokenizer, vocabulary=policy.vocabulary)
    sampling = Sampling("train", 1, 6, max_tokens, 1.0, 3)
    with policy.merged():
        prompts = prompts_for(policy, "a", "what now", "12")
        return grammar, [one for wave in sample(policy, prompts, sampling, grammar) for one in wave]


def test_every_finished_answer_follows_the_schema(load: Load) -> None:
    _, rollouts = constrained(load(trained=True))
    assert {one.finish_reason for one in rollouts} == {"stop"}
    for one in rollouts:
        answer = json.loads(one.text)
        assert set(answer) == {"order", "team"}
        assert answer["order"].isdigit()
        assert 2 <= len(answer["order"]) <= 4
        assert answer["team"] in ("ab", "abc", "x")
        assert one.text == json.dumps(answer)
    assert len({one.text for one in rollouts}) > 3


def test_an_answer_cut_by_the_limit_is_cut_and_kept(load: Load) -> None:
    for limit in (1, 9, 14):
        _, rollouts = constrained(load(trained=True), max_tokens=limit)
        assert {len(one.token_ids) for one in rollouts} == {limit}
        assert {one.finish_reason for one in rollouts} == {"length"}


def test_forced_tokens_have_log_prob_zero_and_free_ones_are_renormalised(load: Load) -> None:
    policy = load(trained=True)
    grammar, rollouts = constrained(policy)
    for one in rollouts:
        choices = replay(grammar, one.token_ids)
        assert len(choices) == len(one.token_ids)
        for choice, logprob in zip(choices, one.logprobs, strict=True):
            assert (choice is None) == (logprob == 0.0)
    opening = policy.tokenizer.encode('{"order": "', add_special_tokens=False)
    assert all(list(one.token_ids[: len(opening)]) == opening for one in rollouts)


def test_the_trainer_sees_the_sampler_s_distribution(load: Load) -> None:
    policy = load(trained=True)
    grammar, rollouts = constrained(policy)
    prompts = prompts_for(policy, "a", "what now", "12")
    groups = [
        Group(
            prompt.token_ids,
            tuple(
                Answer(one.token_ids, one.logprobs, float(one.sample_index % 2) - 0.5)
                for one in rollouts
                if one.item_index == prompt.item_index
            ),
        )
        for prompt in prompts
    ]
    figures, _ = compute_gradient(policy, groups, settings(), grammar, 10_000)
    assert figures.sampler_trainer_kl < 1e-8
    # Without the mask the two differ by far: the test above would notice.
    unmasked, _ = compute_gradient(policy, groups, settings(), None, 10_000)
    assert unmasked.sampler_trainer_kl > 0.1


def test_an_answer_forced_to_its_end_needs_no_model(load: Load) -> None:
    policy = load()
    grammar = Grammar.from_json_schema({"const": {"a": 1}}, policy.tokenizer, vocabulary=policy.vocabulary)
    (prompt,) = prompts_for(policy, "a")
    with torch.no_grad():
        next(iter(policy.adapter.values())).fill_(float("nan"))
    ((one, _),) = sample(policy, [prompt], Sampling("train", 1, 2, 60, 1.0, 3), grammar)
    assert (one.text, one.finish_reason, set(one.logprobs)) == ('{"a": 1}', "stop", {0.0})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "string", "pattern": "(?<=a)b"},
        {"$ref": "#/nowhere"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused_with_the_reason(
    load: Load, schema: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"cannot constrain answers: \w+"):
        Grammar.from_json_schema(schema, load().tokenizer)


def test_replaying_a_foreign_answer_is_refused(load: Load) -> None:
    policy = load()
    grammar = Grammar.from_json_schema(SCHEMA, policy.tokenizer, vocabulary=policy.vocabulary)
    with pytest.raises(ValueError, match="grammar"):
        replay(grammar, policy.tokenizer.encode('{"team": "x"}', add_special_tokens=False))

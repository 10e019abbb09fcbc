"""Models that know no token trees are served too: base and tuned side by side, each as if it were alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.worker.engine.conftest import settings as training
from tests.worker.engine.test_architectures import PLAIN, built
from tests.worker.serving.conftest import Served, add_model, disturb
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.types import Prompt

# With a cache rows can share, with a state in place of keys and values or beside them, with a window, with no
# cache at all.
KINDS = (
    "bloom, alibi",
    "mamba",
    "falcon mamba",
    "jamba, states and attention",
    "gpt-oss, sinks",
    "recurrent gemma, no cache to share",
)
# One is longer than what is read of a text at once.
TEXTS = ("a", "bb", "a longer question than the others", "a", "tell me more " * 24)
SAMPLING = Sampling("test", 1, samples=1, max_tokens=12, temperature=0.0, seed=1)


def _alone(policy: Policy, messages: list[dict[str, Any]]) -> str:
    prompt = Prompt(0, policy.encode_chat(messages))
    return next(sample(policy, [prompt], SAMPLING))[0].text


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("kind", KINDS)
def test_each_answers_as_if_it_were_alone(served: Served, kind: str) -> None:
    name, context = kind.split(",")[0].replace(" ", "-"), served.context
    built(PLAIN[kind], context.settings.models / "tiny", context.settings.models / name)
    add_model(context, name, name, None)
    tuned = f"ft:{name}:personal::cccccccc"
    policy = Policy.load(context.settings.models / name, config=training())
    further = {
        text: [_user(text), {"role": "assistant", "content": answer}, _user("c " * 20)]
        for text, answer in (("a", "b"), ("bb", "and so it is"), ("a longer question than the others", "1"))
    }
    with policy.base():
        expected = {(name, text): _alone(policy, [_user(text)]) for text in TEXTS}
        turns = {(name, text): _alone(policy, messages) for text, messages in further.items()}
    policy.reset_adapter(7)
    disturb(policy, 3)
    policy.save_adapter(context.storage.path(f"jobs/{name}"))
    add_model(context, tuned, name, f"jobs/{name}")
    with policy.merged():
        expected |= {(tuned, text): _alone(policy, [_user(text)]) for text in TEXTS}
        turns |= {(tuned, text): _alone(policy, messages) for text, messages in further.items()}

    asked = [(model, text) for text in TEXTS for model in (name, tuned)]
    with ThreadPoolExecutor(len(asked)) as pool:
        limits = {"temperature": 0, "max_tokens": 12}
        found = list(pool.map(lambda one: served.text(one[1], one[0], **limits), asked))
    assert dict(zip(asked, found, strict=True)) == expected
    assert any(expected[name, text] != expected[tuned, text] for text in TEXTS)
    # What was read before is gone on from where a text begins with all of it.
    for (model, text), answer in turns.items():
        again = served.chat(model=model, messages=further[text], **limits)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert again["choices"][0]["message"]["content"] == answer
    # Several rows of one text, which end at different places.
    drawn = served.chat("bb", tuned, n=3, seed=5, temperature=1.5, max_tokens=9, stop=["a"])
    assert len(drawn["choices"]) == 3
    again = served.chat("bb", tuned, n=3, seed=5, temperature=1.5, max_tokens=9, stop=["a"])
    assert drawn["choices"] == again["choices"]
    served.post("/v1/models/unload", {"model": name})

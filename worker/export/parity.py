"""The gate: an archive's model, loaded again from disk, held against the trained model.

The trained model answers greedily and says how likely each next token is; the archive's must agree. What
"agree" means depends on the number type the form is written in. Called by the process and by the bench.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout
from worker.engine.packing import Tree, pack
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.types import Prompt

ANSWER_TOKENS = 32
# Longer prompts are cut from the gate: reading them would be most of its time.
PROMPT_TOKENS = 1024
# Log-probs are compared for the tokens the trained model finds likeliest.
LIKELIEST = 5
_CHUNK = 128

OnProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a number type is allowed: the share of next tokens that agree, and the gap of a log-prob."""

    agreement: float
    gap: float

    @property
    def tie(self) -> float:
        """How near two tokens must be for either to come first: each may move by the gap."""
        return 2 * self.gap


# float32 differs by the order of sums alone; the others round each weight once.
TOLERANCES = {
    "float32": Tolerance(agreement=0.999, gap=1e-3),
    "float16": Tolerance(agreement=0.99, gap=0.1),
    "bfloat16": Tolerance(agreement=0.95, gap=0.5),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the trained model says to a conversation: a greedy answer, and the likeliest tokens at each place.

    Shapes: `likeliest` and `logprobs` [N - 1, 5], one row for each token of prompt and answer but the last.
    """

    messages: Sequence[dict[str, Any]]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    likeliest: Tensor
    logprobs: Tensor


class Artifact(Protocol):
    """A model as the archive holds it: its own tokenizer, chat template and weights."""

    def encode(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """Return a conversation's tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return an answer's text."""

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the logits after each token. Shapes: [N] -> [N, V]."""

    def answers(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the greedy answers, each with its stop token, at most ANSWER_TOKENS long."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an archive's model agrees with the trained one. `same_*` count prompts."""

    dtype: str
    prompts: int
    from_data: int
    positions: int
    agreement: float
    gap: float
    same_tokens: int
    same_texts: int
    near_ties: int
    required_agreement: float
    allowed_gap: float

    @property
    def faults(self) -> list[str]:
        """What is outside the tolerance, in sentences."""
        found = []
        if self.same_tokens < self.prompts:
            found.append(f"Its tokenizer splits {self.prompts - self.same_tokens} prompts otherwise.")
        # A gap that is no number is no agreement.
        if not self.gap <= self.allowed_gap:
            found.append(
                f"A token's log-prob differs by {self.gap:.2g}; {self.dtype} allows {self.allowed_gap:g}."
            )
        if self.agreement < self.required_agreement:
            found.append(
                f"Its next token agrees at {self.agreement:.2%} of {self.positions} places; "
                f"{self.required_agreement:.1%} are needed."
            )
        if wrong := self.prompts - self.same_texts - self.near_ties:
            found.append(f"{wrong} of {self.prompts} greedy texts differ, and not at a tie.")
        return found

    def wire(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them: a gap that is no number is none."""
        gap = self.gap if math.isfinite(self.gap) else None
        return asdict(self) | {"gap": gap, "passed": not self.faults}


@torch.no_grad()
def ask(
    policy: Policy, conversations: Iterable[Sequence[dict[str, Any]]], on_progress: OnProgress
) -> list[Answer]:
    """Return what the trained model says to each conversation that is not too long."""
    room = min(PROMPT_TOKENS, (policy.context_length or PROMPT_TOKENS + ANSWER_TOKENS) - ANSWER_TOKENS)
    asked = [(messages, policy.encode_chat(messages)) for messages in conversations]
    asked = [(messages, tokens) for messages, tokens in asked if len(tokens) <= room]
    prompts = [Prompt(index, tokens) for index, (_, tokens) in enumerate(asked)]
    sampling = Sampling("export", 0, 1, ANSWER_TOKENS, 0.0, 0)
    found: list[Answer] = []
    with policy.merged():
        rollouts = [one for wave in sample(policy, prompts, sampling) for one in wave]
        for (messages, tokens), rollout in zip(asked, rollouts, strict=True):
            packed = pack((), [Tree((*tokens, *rollout.token_ids))], policy.device)
            hidden = policy.hidden(packed.token_ids, packed.positions, PackedLayout(packed))[:-1]
            parts = (hidden[start : start + _CHUNK] for start in range(0, len(hidden), _CHUNK))
            likeliest = [_likeliest(policy.logits(part)) for part in parts]
            indices, logprobs = (torch.cat(list(rows)) for rows in zip(*likeliest, strict=True))
            found.append(
                Answer(messages, tokens, rollout.token_ids, rollout.text, indices.cpu(), logprobs.cpu())
            )
            on_progress(len(found) / len(asked))
    return found


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    top = logits.float().log_softmax(-1).topk(LIKELIEST)
    return top.indices, top.values


@torch.no_grad()
def compare(
    answers: Sequence[Answer], artifact: Artifact, *, dtype: str, from_data: int, on_progress: OnProgress
) -> Parity:
    """Hold an archive's model against the trained model's answers."""
    tolerance = TOLERANCES[dtype]
    agreeing, positions = 0, 0
    gaps: list[float] = []
    for number, answer in enumerate(answers, 1):
        logprobs = artifact.logits((*answer.prompt, *answer.answer))[:-1].float().cpu().log_softmax(-1)
        agreeing += int((logprobs.argmax(-1) == answer.likeliest[:, 0]).sum())
        positions += len(logprobs)
        gaps.append((logprobs.gather(1, answer.likeliest) - answer.logprobs).abs().max().item())
        on_progress(number / len(answers) / 2)
    said = artifact.answers([answer.prompt for answer in answers])
    same = [
        tokens == answer.answer and artifact.decode(tokens) == answer.text
        for answer, tokens in zip(answers, said, strict=True)
    ]
    ties = [
        not alike and _at_a_tie(answer, tokens, tolerance.tie)
        for answer, tokens, alike in zip(answers, said, same, strict=True)
    ]
    on_progress(1.0)
    return Parity(
        dtype=dtype,
        prompts=len(answers),
        from_data=min(from_data, len(answers)),
        positions=positions,
        agreement=agreeing / positions,
        # Python's max() would pass over what is no number.
        gap=math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps),
        same_tokens=sum(artifact.encode(answer.messages) == answer.prompt for answer in answers),
        same_texts=sum(same),
        near_ties=sum(ties),
        required_agreement=tolerance.agreement,
        allowed_gap=tolerance.gap,
    )


def _at_a_tie(answer: Answer, tokens: tuple[int, ...], tie: float) -> bool:
    """Say whether a text leaves the trained model's where two tokens were nearly as likely."""
    pairs = enumerate(zip(answer.answer, tokens, strict=False))
    first = next((place for place, (mine, theirs) in pairs if mine != theirs), None)
    if first is None:
        return False
    logprobs = answer.logprobs[len(answer.prompt) - 1 + first]
    return bool(logprobs[0] - logprobs[1] <= tie)

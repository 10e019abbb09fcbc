"""The gate: an archive's model, loaded again from disk, held against the trained model.

The trained model answers greedily and says how likely each next token is; the archive's must agree. What
"agree" means depends on the number type the form is written in. Called by the process and by the bench.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout
from worker.engine.packing import Tree, pack
from worker.engine.policy import Policy
from worker.engine.sampler import Sampling, sample
from worker.engine.types import Prompt
from worker.export.source import PROMPTS, ExportImpossible, Messages

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

    Shapes: `likeliest`, `logprobs` and the base model's `base_logprobs` of the same tokens [N - 1, 5], one
    row for each token of prompt and answer but the last.
    """

    messages: Messages
    from_data: bool
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    likeliest: Tensor
    logprobs: Tensor
    base_logprobs: Tensor


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
    """How far an archive's model agrees with the trained one. `same_*` count prompts.

    `gap` is the largest difference of a log-prob; the other gaps are means: of the archive to the trained
    model, of the archive to the base model, and of the trained model to its base.
    """

    dtype: str
    prompts: int
    from_data: int
    positions: int
    agreement: float
    gap: float
    mean_gap: float
    gap_to_base: float
    gap_of_training: float
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
        # A number type rounds towards the base as much as away from it. Training far below the rounding can't
        # be told from none.
        if self.mean_gap > self.gap_to_base and self.gap_of_training > self.mean_gap / 10:
            found.append("It is nearer to the base model than to the trained one.")
        if self.agreement < self.required_agreement:
            found.append(
                f"Its next token agrees at {self.agreement:.2%} of {self.positions} places; "
                f"{self.required_agreement:.1%} are needed."
            )
        if wrong := self.prompts - self.same_texts - self.near_ties:
            found.append(f"{wrong} of {self.prompts} greedy texts differ, and not at a tie.")
        if 2 * self.near_ties > self.prompts:
            found.append(f"{self.near_ties} of {self.prompts} greedy texts part at a tie; half may.")
        return found

    def wire(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them: a gap that is no number is none."""
        figures = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return figures | {"passed": not self.faults}


@torch.no_grad()
def ask(
    policy: Policy, own: Iterable[Messages], general: Iterable[Messages], on_progress: OnProgress
) -> list[Answer]:
    """Return what the trained model says to PROMPTS conversations, the job's own first, none too long.

    Raises: ExportImpossible when every one is too long.
    """
    room = min(PROMPT_TOKENS, (policy.context_length or PROMPT_TOKENS + ANSWER_TOKENS) - ANSWER_TOKENS)
    encoded = (
        (messages, from_data, policy.encode_chat(messages))
        for conversations, from_data in ((own, True), (general, False))
        for messages in conversations
    )
    asked = list(islice((one for one in encoded if len(one[2]) <= room), PROMPTS))
    if not asked:
        raise ExportImpossible(f"No prompt to compare with fits into {room} tokens, what its context leaves.")
    prompts = [Prompt(index, tokens) for index, (_, _, tokens) in enumerate(asked)]
    sampling = Sampling("export", 0, 1, ANSWER_TOKENS, 0.0, 0)
    with policy.merged():
        rollouts = [one for wave in sample(policy, prompts, sampling) for one in wave]
        texts = [(*tokens, *one.token_ids) for (_, _, tokens), one in zip(asked, rollouts, strict=True)]
        likeliest = []
        for number, text in enumerate(texts, 1):
            tops = [part.topk(LIKELIEST) for part in _logprobs(policy, text)]
            likeliest.append(
                (torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops]))
            )
            on_progress(number / len(texts) * 0.7)
    found: list[Answer] = []
    with policy.base():
        for (messages, from_data, tokens), rollout, text, (indices, logprobs) in zip(
            asked, rollouts, texts, likeliest, strict=True
        ):
            rows = torch.split(indices, _CHUNK)
            of_base = [part.gather(1, own) for part, own in zip(_logprobs(policy, text), rows, strict=True)]
            found.append(
                Answer(
                    messages,
                    from_data,
                    tokens,
                    rollout.token_ids,
                    rollout.text,
                    indices.cpu(),
                    logprobs.cpu(),
                    torch.cat(of_base).cpu(),
                )
            )
            on_progress(0.7 + 0.3 * len(found) / len(texts))
    return found


def _logprobs(policy: Policy, text: Sequence[int]) -> Iterator[Tensor]:
    """Yield each token's log-prob after each of a text but the last, some places at a time: [_CHUNK, V]."""
    packed = pack((), [Tree(tuple(text))], policy.device)
    hidden = policy.hidden(packed.token_ids, packed.positions, PackedLayout(packed))[:-1]
    for part in torch.split(hidden, _CHUNK):
        yield policy.logits(part).float().log_softmax(-1)


@torch.no_grad()
def compare(answers: Sequence[Answer], artifact: Artifact, *, dtype: str, on_progress: OnProgress) -> Parity:
    """Hold an archive's model against the trained model's answers."""
    tolerance = TOLERANCES[dtype]
    agreeing, positions = 0, 0
    gaps: list[float] = []
    means = torch.zeros(3, dtype=torch.float64)
    for number, answer in enumerate(answers, 1):
        logprobs = artifact.logits((*answer.prompt, *answer.answer))[:-1].float().cpu().log_softmax(-1)
        agreeing += int((logprobs.argmax(-1) == answer.likeliest[:, 0]).sum())
        positions += len(logprobs)
        own = logprobs.gather(1, answer.likeliest)
        gaps.append((own - answer.logprobs).abs().max().item())
        pairs = ((own, answer.logprobs), (own, answer.base_logprobs), (answer.logprobs, answer.base_logprobs))
        means += torch.stack([(mine - theirs).double().abs().sum() for mine, theirs in pairs])
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
    mean_gap, gap_to_base, gap_of_training = (means / (positions * LIKELIEST)).tolist()
    return Parity(
        dtype=dtype,
        prompts=len(answers),
        from_data=sum(answer.from_data for answer in answers),
        positions=positions,
        agreement=agreeing / positions,
        # Python's max() would pass over what is no number.
        gap=math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps),
        mean_gap=mean_gap,
        gap_to_base=gap_to_base,
        gap_of_training=gap_of_training,
        same_tokens=sum(artifact.encode(answer.messages) == answer.prompt for answer in answers),
        same_texts=sum(same),
        near_ties=sum(ties),
        required_agreement=tolerance.agreement,
        allowed_gap=tolerance.gap,
    )


def _at_a_tie(answer: Answer, tokens: tuple[int, ...], tie: float) -> bool:
    """Say whether a text leaves the trained model's for a token that was nearly as likely there."""
    pairs = enumerate(zip(answer.answer, tokens, strict=False))
    first = next((place for place, (mine, theirs) in pairs if mine != theirs), None)
    if first is None:
        return False
    place = len(answer.prompt) - 1 + first
    near = answer.likeliest[place][answer.logprobs[place][0] - answer.logprobs[place] <= tie]
    return tokens[first] in near.tolist()

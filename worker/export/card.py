"""The model card: what an archive is, what it was made from and with, how good it is, how to load it.

Plain Markdown under the head that model hubs read. Called once the gate is passed.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256

from app.graders.json_text import compact
from worker.engine.checkpoint import versions
from worker.export import gguf
from worker.export.parity import ANSWER_TOKENS, Parity
from worker.export.source import Source

_WHAT = {
    "adapter": "A LoRA adapter in PEFT's layout. It needs its base model.",
    "merged": "The base model with the adapter added to its weights. It stands alone.",
    "gguf": "The base model with the adapter added to its weights, as one GGUF file.",
}


def write_card(source: Source, parity: Parity, base_hashes: Mapping[str, str], made_at: float) -> str:
    """Return the card's text."""
    parts = [
        _head(source),
        f"# {source.model_id}\n\n{_WHAT[source.form]}",
        "## Load it\n\n" + _loading(source),
        "## Where it comes from\n\n" + "\n".join(_origin(source, base_hashes)),
        "## How good it is\n\n" + _evaluation(source),
        "## How it was checked\n\n" + _checked(source, parity),
        f"## Licence\n\n{_licence(source)}",
        "Made " + datetime.fromtimestamp(made_at, UTC).strftime("%Y-%m-%d %H:%M UTC") + " by Tunesmith, with "
        f"{', '.join(f'{name} {number}' for name, number in versions().items())}.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(source: Source) -> str:
    library = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[source.form]
    lines = [f"base_model: {json.dumps(source.base.id)}", f"library_name: {library}"]
    lines += ["pipeline_tag: text-generation", "tags:", "- reinforcement-fine-tuning", "- tunesmith"]
    if source.base.licence is not None:
        lines.insert(0, f"license: {json.dumps(source.base.licence)}")
    return "---\n" + "\n".join(lines) + "\n---"


def _loading(source: Source) -> str:
    if source.form == "gguf":
        return (
            f"```sh\nllama-cli -m {gguf.NAME}\n```\n\nIn transformers take the weights from the file, with "
            f'`AutoModelForCausalLM.from_pretrained(".", gguf_file="{gguf.NAME}")`, and the tokenizer from '
            'this folder, with `AutoTokenizer.from_pretrained(".")`: it does not know every rule a file may '
            "name."
        )
    start = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    if source.form == "merged":
        body = 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")\n'
    else:
        start = "from peft import PeftModel\n" + start
        body = (
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(source.base.id)})  # or its folder\n"
            'model = PeftModel.from_pretrained(base, ".")\n'
        )
    return f'```python\n{start}\ntokenizer = AutoTokenizer.from_pretrained(".")\n{body}```'


def _origin(source: Source, base_hashes: Mapping[str, str]) -> Iterator[str]:
    job = source.job
    yield f"- Base model: `{source.base.id}`"
    for name, digest in base_hashes.items():
        yield f"  - `{name}`: sha256 `{digest}`"
    if job.model != source.base.id:
        yield f"- Tuned further from: `{job.model}`"
    yield f"- Job: `{job.id}`, step {source.step} of {job.total_steps}, seed {job.seed}"
    for one in source.data:
        digest = f"sha256 `{one.sha256}`" if one.sha256 else "deleted since, its hash is not known"
        yield f"- {one.role.capitalize()} data: `{one.filename or one.file_id}`, {digest}"
    grader = job.method["reinforcement"]["grader"]
    yield f"- Grader: `{grader.get('name') or grader['type']}` ({grader['type']}), {_grader_version(source)}"
    yield f"- Hyperparameters: `{compact(job.resolved or {})}`"


def _grader_version(source: Source) -> str:
    told = [
        f"version {one['version']} of saved grader `{one['id']}`"
        for one in (source.job.saved_graders or {}).values()
    ]
    content = compact(source.job.method["reinforcement"]["grader"])
    return ", ".join([*told, f"sha256 `{sha256(content.encode()).hexdigest()}`"])


def _evaluation(source: Source) -> str:
    measured = source.evaluation
    if measured is None:
        return "Base and tuned model were not compared at this step."
    split = (
        "test file" if measured["split"] == "test" else "validation file, which also chose the checkpoints"
    )
    lines = [
        f"Mean reward on the job's {split}, {measured['n']} items, 95% intervals by paired bootstrap:",
        "",
    ]
    lines += ["| | mean | 95% interval |", "|---|---|---|"]
    for name in ("base", "tuned", "difference"):
        low, high = measured[name]["ci95"]
        lines.append(f"| {name} | {measured[name]['mean']:.4f} | {low:.4f} to {high:.4f} |")
    lines += ["", f"{measured['fixed']} items fixed, {measured['broken']} broken."]
    return "\n".join(lines)


def _checked(source: Source, parity: Parity) -> str:
    whose = f"{parity.from_data} of them from the job's own data" if parity.from_data else "of a general kind"
    return (
        "Loaded again from these files and held against the trained model "
        f"on {parity.prompts} prompts, {whose}:\n"
        "\n| | measured | required |\n|---|---|---|\n"
        f"| next token agrees ({parity.positions} places) | {parity.agreement:.4%} "
        f"| {parity.required_agreement:.1%} |\n"
        f"| largest gap of a likely token's log-prob | {parity.gap:.2g} | {parity.allowed_gap:g} |\n"
        f"| greedy texts equal ({ANSWER_TOKENS} tokens) | {parity.same_texts} of {parity.prompts} | "
        f"all, but {parity.near_ties} that part at a tie |\n"
        f"| prompts split into the same tokens | {parity.same_tokens} of {parity.prompts} | all |\n"
        f"\nWeights are stored as {parity.dtype}; the numbers above were computed in float32."
    )


def _licence(source: Source) -> str:
    if source.base.licence is None:
        return "The base model's files name no licence: ask its makers before you pass this on."
    return (
        f"The base model is under `{source.base.licence}`, and so is what derives from it here. Its licence "
        "and notices lie beside this file where the base model brought them."
    )

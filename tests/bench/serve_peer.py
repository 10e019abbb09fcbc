"""transformers' side of `serve.py`: its own model, cache and `generate`, asked by lines of JSON."""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Peer:
    """A model as transformers runs it."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def texts(self, prompts: list[str]) -> list[str]:
        return [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]

    @torch.no_grad()
    def speed(self, asked: dict[str, Any]) -> tuple[float, int]:
        batch = self.tokenizer(
            self.texts(asked["prompts"]), return_tensors="pt", padding=True, add_special_tokens=False
        )
        count, started = asked["tokens"], time.perf_counter()
        out = self.causal.generate(**batch, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        seconds, length = time.perf_counter() - started, batch["input_ids"].shape[1]
        assert out.shape[1] == length + count
        return len(asked["prompts"]) * count / seconds, length

    @torch.no_grad()
    def compare(self, asked: dict[str, Any]) -> dict[str, Any]:
        equal, undecided, gaps = 0, 0, []
        for prompt, said in zip(self.texts(asked["prompts"]), asked["texts"], strict=True):
            tokens = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            start = tokens["input_ids"].shape[1]
            out = self.causal.generate(
                **tokens,
                max_new_tokens=asked["tokens"],
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
            own = out.sequences[0, start:].tolist()
            if self.tokenizer.decode(own, skip_special_tokens=True) == said:
                equal += 1
                continue
            place = next(
                place
                for place in range(len(own))
                if not said.startswith(self.tokenizer.decode(own[: place + 1], skip_special_tokens=True))
                or place == len(own) - 1
            )
            first, second = out.scores[place][0].topk(2).values.tolist()
            gaps.append(round(first - second, 5))
            undecided += first - second <= asked["undecided"]
        return {"equal": equal, "undecided": undecided, "gaps": gaps}


def main() -> None:
    """Answer until nobody asks any more."""
    peer = Peer(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(peer, asked["do"])(asked)), flush=True)


if __name__ == "__main__":
    main()

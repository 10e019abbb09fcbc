"""A tiny random Llama with a real tokenizer and chat template, built from nothing in under a second.

Not a language model, but a model folder like any other: every test that needs one builds it with
`build_tiny_model(directory)`.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

START, STOP = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A few tokens of more than one byte, so that a text can be spelt in more than one way.
MERGES = [("a", "b"), ("{", '"'), ('"', ":"), ('"', "}"), ("o", "r"), ("1", "2")]


def build_tiny_model(directory: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2) -> Path:
    """Save a random model, its tokenizer and its chat template into a folder, and return the folder."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(directory)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4096,
                tie_word_embeddings=True,
                # Larger than usual: a random model of the usual size answers almost uniformly.
                initializer_range=0.1,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(directory)
    return directory


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with every byte, a handful of merges and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [STOP, START, *alphabet, *("".join(pair) for pair in MERGES)]
    inner = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=STOP,
        pad_token=STOP,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )

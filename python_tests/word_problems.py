"""A tiny random model that answers made-up word problems, sometimes rightly: its words are few."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from autodeco_ext.evaluation.problems import Problem

WORDS = ["<unk>", "<end>", "\n", " ", "= 1", "= 2", "= 3", "apples", "pens", "many", "How"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of WORDS; everything else is <unk>."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"\n|= \d|[a-zA-Z]+|\S| "), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )


# Of a base for word_tokenizer, whatever its architecture.
SIZES = dict(
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=1,
)


def word_model(vocab: int = len(WORDS)) -> LlamaForCausalLM:
    """A random Llama whose logits depend on the prefix."""
    config = LlamaConfig(vocab_size=vocab, num_hidden_layers=2, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.25)
    return model


def made_up_problems(count: int) -> list[Problem]:
    """Questions of different lengths, no two alike; the answers are 1, 2 and 3."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        Problem(
            f"How many apples has {letters[index % 26]}{letters[index // 26]}"
            + " and how many pens" * (index % 4)
            + "?",
            float(1 + index % 3),
            "made up",
        )
        for index in range(count)
    ]


def save_base(folder: Path) -> Path:
    """Write model and tokenizer as from_pretrained reads them; return the folder."""
    word_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_problems(path: Path, count: int) -> Path:
    """Write made-up problems as JSONL; return the path."""
    lines = [
        json.dumps({"question": one.question, "answer": one.answer})
        for one in made_up_problems(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

"""Tiny random models for tests: no download, and logits and predictions that vary."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from autodeco_ext import AutoDecoConfig, AutoDecoHeads, AutoDecoModelForCausalLM

VOCAB = 53
HIDDEN = 32
MAX_POSITIONS = 64
IDS = torch.tensor([[1, 7, 20, 33, 2], [4, 4, 2, 50, 9]])
PROMPT = torch.tensor([[1, 7, 20, 33], [1, 5, 20, 11], [4, 4, 2, 50]])

_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
}
ARCHITECTURES = [(name, tied) for name in _CLASSES for tied in (False, True)]


def tiny_base(
    name: str = "llama",
    *,
    tied: bool = False,
    vocab: int = VOCAB,
    hidden: int = HIDDEN,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PreTrainedModel:
    """A two-layer base model in eval mode, without an end token; 0 is the padding token."""
    config_class, model_class, extra = _CLASSES[name]
    config = config_class(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **extra,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():
            # The default initialisation (0.02) gives almost flat logits, the same after every
            # prefix.
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.3)
    return model.to(dtype)


def spread_heads(heads: AutoDecoHeads) -> None:
    """Make predictions vary: T around 1, P around 0.8."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for head, offset in ((heads.temp_head, 0.0), (heads.top_p_head, 1.5)):
            for parameter in head.parameters():
                parameter.normal_(0, 0.12)
            head.mlp[2].bias.fill_(offset)


def tiny_heads() -> AutoDecoHeads:
    """Heads for a tiny base, with predictions that vary."""
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=HIDDEN))
    spread_heads(heads)
    return heads


def tiny_autodeco(name: str = "llama", **kwargs: object):
    """Return an AutoDecoModelForCausalLM on a tiny base, with heads that vary."""
    model = AutoDecoModelForCausalLM.from_base(tiny_base(name, **kwargs))
    spread_heads(model.heads)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word "t<i>", so "t1 t7" is [1, 7]."""
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", unk_token="t0")


def draw(model, prompt: torch.Tensor = PROMPT, **kwargs: object):
    """model.generate with sampling, 8 new tokens and a seed, unless told otherwise."""
    return model.generate(prompt, **{"do_sample": True, "max_new_tokens": 8, "seed": 3, **kwargs})


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """run(0), run(1), ... at the same time, each in a thread; what one raises is raised here."""
    barrier = threading.Barrier(count)

    def started(number: int) -> Any:
        barrier.wait()
        return run(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))

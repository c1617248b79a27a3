"""The careful pure-torch baseline: one sort, per-row temperature and top-p; eager and compiled."""

from __future__ import annotations

import torch

from bench.providers import Provider
from bench.providers.compiled import compiled


def scaled_logits(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """logits / T in float32: type promotion makes it one pass, also from bfloat16."""
    return torch.div(logits, temperature[:, None])


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """logits / T inside the nucleus, -inf outside, float32 [rows, vocab]."""
    scaled = scaled_logits(logits, temperature)
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # mass of the tokens ahead
    ordered = ordered.masked_fill(before >= top_p[:, None], -float("inf"))
    return torch.empty_like(scaled).scatter_(-1, order, ordered)


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """One token per row, int64 [rows]."""
    probs = filter_logits(logits, temperature, top_p).softmax(-1)
    return probs.multinomial(1)[:, 0]


FILTER_LOGITS = Provider(filter_logits)
FILTER_LOGITS_COMPILED = Provider(compiled(filter_logits))
SAMPLE = Provider(sample, waits=True)  # multinomial looks at its input
SAMPLE_COMPILED = Provider(compiled(sample), waits=True)

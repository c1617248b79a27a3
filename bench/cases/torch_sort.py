"""The careful pure-torch baseline: one sort, per-row temperature and top-p."""

from __future__ import annotations

import torch


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """logits / T inside the nucleus, -inf outside, float32 [rows, vocab]."""
    scaled = logits.float() / temperature[:, None]
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # mass of the tokens ahead
    ordered = ordered.masked_fill(before >= top_p[:, None], -float("inf"))
    return torch.empty_like(scaled).scatter_(-1, order, ordered)


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """One token per row, int64 [rows]."""
    probs = filter_logits(logits, temperature, top_p).softmax(-1)
    return probs.multinomial(1)[:, 0]

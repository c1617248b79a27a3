"""The four features of `distribution_stats` in pure torch, eager and compiled."""

from __future__ import annotations

import torch


def eager(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Largest probability, entropy, variance, sum of the five largest: float32 [rows, 4]."""
    shifted = logits.float() - logits.amax(-1, keepdim=True)
    q = (shifted / (temperature[:, None] + 1e-8)).softmax(-1)
    entropy = -(q * (q + 1e-8).log()).sum(-1)
    return torch.stack([q.amax(-1), entropy, q.var(-1), q.topk(5).values.sum(-1)], dim=-1)


compiled = torch.compile(eager, dynamic=True, fullgraph=True)

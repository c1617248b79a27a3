"""What `generate` does: temperature and top-p warpers, softmax, multinomial.

The stock warpers take one value for the batch; the mean of the per-row ones is used, which costs
the same.
"""

from __future__ import annotations

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Warped scores, float32 [rows, vocab]."""
    scores = TemperatureLogitsWarper(float(temperature.mean()))(None, logits.float())
    return TopPLogitsWarper(float(top_p.mean()))(None, scores)


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """One token per row, int64 [rows]."""
    return filter_logits(logits, temperature, top_p).softmax(-1).multinomial(1)[:, 0]

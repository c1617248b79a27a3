"""What `generate` does: temperature and top-p warpers, softmax, multinomial.

The stock warpers take one value for the batch: the middle of the ranges of bench/rows.py, which
costs the same as any other.
"""

from __future__ import annotations

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from bench.providers import Provider
from bench.rows import MEAN_TEMPERATURE, MEAN_TOP_P

_WARP_TEMPERATURE = TemperatureLogitsWarper(MEAN_TEMPERATURE)
_WARP_TOP_P = TopPLogitsWarper(MEAN_TOP_P)
_UNCHECKED = "takes one temperature and top_p for the batch"


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Warped scores, float32 [rows, vocab]."""
    return _WARP_TOP_P(None, _WARP_TEMPERATURE(None, logits.float()))


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """One token per row, int64 [rows]."""
    return filter_logits(logits, temperature, top_p).softmax(-1).multinomial(1)[:, 0]


FILTER_LOGITS = Provider(filter_logits, unchecked=_UNCHECKED)
SAMPLE = Provider(sample, unchecked=_UNCHECKED, waits=True)  # multinomial looks at its input

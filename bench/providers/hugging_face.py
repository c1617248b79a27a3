"""What `generate` does: temperature and top-p warpers, softmax, multinomial.

The stock warpers take one value for the batch: the middle of the ranges of bench/rows.py, which
costs the same as any other, and is what the result is judged with.
"""

from __future__ import annotations

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from bench.cases.kept_bounds import filtered_up_to_ties_is_right, token_up_to_ties_is_right
from bench.providers import Check, Provider
from bench.rows import MEAN_TEMPERATURE, MEAN_TOP_P

_WARP_TEMPERATURE = TemperatureLogitsWarper(MEAN_TEMPERATURE)
_WARP_TOP_P = TopPLogitsWarper(MEAN_TOP_P)


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Warped scores, float32 [rows, vocab]."""
    return _WARP_TOP_P(None, _WARP_TEMPERATURE(None, logits.float()))


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """One token per row, int64 [rows]."""
    return filter_logits(logits, temperature, top_p).softmax(-1).multinomial(1)[:, 0]


def _for_its_parameters(is_right: Check) -> Check:
    def check(result: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
        own = torch.full_like(t, MEAN_TEMPERATURE), torch.full_like(p, MEAN_TOP_P)
        return is_right(result, logits, *own)

    return check


FILTER_LOGITS = Provider(filter_logits, _for_its_parameters(filtered_up_to_ties_is_right))
# Waits: multinomial looks at its input.
SAMPLE = Provider(sample, _for_its_parameters(token_up_to_ties_is_right), waits=True)

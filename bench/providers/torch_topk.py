"""Pure torch with a window: the 1024 largest logits, and a sort where they do not hold the nucleus.

Exact: the window's mass is compared with P times the mass of the whole row. Looking at that costs a
wait for the device, which is cheap on a CPU.
"""

from __future__ import annotations

import torch

from bench.cases.kept_bounds import token_up_to_ties_is_right
from bench.providers import Provider, torch_sort

WINDOW = 1024


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """One token per row, int64 [rows]."""
    scaled = torch_sort.scaled_logits(logits, temperature)
    values, tokens = scaled.topk(min(WINDOW, scaled.shape[-1]), dim=-1)
    probs = (values - scaled.logsumexp(-1, keepdim=True)).exp()
    total = probs.cumsum(-1)
    probs = probs.masked_fill(total - probs >= top_p[:, None], 0.0)
    drawn = tokens.gather(-1, probs.multinomial(1))[:, 0]
    short = (total[:, -1] < top_p) & (scaled.shape[-1] > WINDOW)
    if bool(short.any()):
        drawn[short] = torch_sort.sample(logits[short], temperature[short], top_p[short])
    return drawn


SAMPLE = Provider(sample, token_up_to_ties_is_right, waits=True)

"""T and P of the heads in pure torch, as released."""

from __future__ import annotations

import torch
from torch import Tensor

from autodeco_ext import AutoDecoHeads
from bench.providers import torch_stats


def predict(heads: AutoDecoHeads, hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """(T, P) [rows]; what the top-p head reads is a constant."""
    hidden = hidden.float()
    temperature = 2 * heads.temp_head(hidden).sigmoid()
    constant = temperature.detach()
    features = torch_stats.eager(logits, constant, constant)
    x = torch.cat([hidden, constant[:, None], features], dim=-1)
    return temperature, heads.top_p_head(x).sigmoid()

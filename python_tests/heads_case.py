"""Heads alone, without a model, and what they read."""

from __future__ import annotations

import torch
from oracle import make_rows

from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads

HIDDEN = 48


def make_heads(device: torch.device | str = "cpu", scale: float = 1.0, **options) -> AutoDecoHeads:
    """`scale` > 1 spreads the predictions over their range, as training does."""
    torch.manual_seed(0)
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=HIDDEN, **options))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter *= scale
    return heads.to(device)


def make_input(
    *shape: int, vocab: int = 1000, kind: str = "peaked", dtype=torch.float32, device="cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    rows = int(torch.tensor(shape).prod())
    hidden = torch.randn(*shape, HIDDEN, generator=random)
    logits = make_rows(kind, rows, vocab, dtype, random).reshape(*shape, vocab)
    return hidden.to(device, dtype), logits.to(device)

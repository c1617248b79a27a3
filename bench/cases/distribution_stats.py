"""distribution_stats(logits, temperature)."""

from __future__ import annotations

from functools import partial

import torch

import autodeco_ext
from autodeco_ext import reference
from bench.providers import Missing, Provider, floor, torch_stats


def providers(device: str) -> dict[str, Provider | Missing]:
    return {
        "autodeco_ext": Provider(lambda logits, t, p: autodeco_ext.distribution_stats(logits, t)),
        "floor": floor.PROVIDER,
        # Sums of float32 in float32 are not as close to the definition as ours.
        "pure torch": Provider(torch_stats.eager, partial(is_right, tolerance=1e-3)),
        "pure torch compiled": Provider(torch_stats.compiled, partial(is_right, tolerance=1e-3)),
    }


def is_right(
    stats: torch.Tensor,
    logits: torch.Tensor,
    t: torch.Tensor,
    p: torch.Tensor,
    tolerance: float = 1e-5,
) -> bool:
    """Near the definition in float64: relative, for the entropy absolute."""
    parts = zip(logits.split(32), t.split(32), strict=True)
    expected = torch.cat([reference.distribution_stats(*part) for part in parts])
    close = torch.isclose(stats.double(), expected, rtol=tolerance, atol=1e-9)
    close[:, 1] = (stats[:, 1] - expected[:, 1]).abs() < tolerance
    return bool(close.all())

"""distribution_stats(logits, temperature)."""

from __future__ import annotations

import torch

import autodeco_ext
from autodeco_ext import reference


def _torch(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return reference.distribution_stats(logits, t, dtype=torch.float32)


PROVIDERS = {
    "autodeco_ext": lambda logits, t, p: autodeco_ext.distribution_stats(logits, t),
    "pure torch": _torch,
}


def is_right(stats: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """Within 1e-5 of the definition in float64, relative, and 1e-5 absolute for the entropy."""
    expected = reference.distribution_stats(logits, t)
    close = torch.isclose(stats.double(), expected, rtol=1e-5, atol=1e-9)
    close[:, 1] = (stats[:, 1] - expected[:, 1]).abs() < 1e-5
    return bool(close.all())


UNCHECKED: set[str] = set()

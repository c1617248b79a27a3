"""Logits to time with: several batches, so that a round does not find its rows in the cache."""

from __future__ import annotations

import torch

DISTRIBUTIONS = ("peaked", "gaussian", "uniform")
# Rounds rotate over at least this much, more than the last-level cache of most machines.
ROTATED_BYTES = 64 * 2**20


def batches(
    distribution: str, rows: int, vocab: int, dtype: torch.dtype, seed: int = 0
) -> torch.Tensor:
    """Logits [batches, rows, vocab]; "peaked" has p of the r-th token ~ r^-1.8, as LLMs have."""
    generator = torch.Generator().manual_seed(seed)
    count = max(2, ROTATED_BYTES // (rows * vocab * dtype.itemsize))
    shape = (count, rows, vocab)
    if distribution == "peaked":
        rank = 1 + vocab * torch.rand(shape, generator=generator)
        return (12 - 1.8 * rank.log()).to(dtype)
    if distribution == "gaussian":
        return torch.randn(shape, generator=generator).to(dtype)
    if distribution == "uniform":
        return torch.zeros(shape, dtype=dtype)
    raise ValueError(f"bench: distribution must be one of {DISTRIBUTIONS}, got {distribution!r}")


def parameters(rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Heterogeneous T in [0.1, 2] and P in [0.1, 1], float32 [rows]."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, rows, generator=generator)
    return 0.1 + 1.9 * uniform[0], 0.1 + 0.9 * uniform[1]

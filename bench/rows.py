"""Logits to time with: several batches, so that a round does not find its rows in the cache."""

from __future__ import annotations

import torch

DISTRIBUTIONS = ("peaked", "gaussian", "gaussian5", "uniform", "tied")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEMPERATURES = (0.1, 2.0)
TOP_PS = (0.1, 1.0)
MEAN_TEMPERATURE = sum(TEMPERATURES) / 2
MEAN_TOP_P = sum(TOP_PS) / 2


def batches(
    distribution: str,
    count: int,
    rows: int,
    vocab: int,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 0,
) -> torch.Tensor:
    """Logits [count, rows, vocab].

    "peaked": the r-th token has p ~ r^-1.8, as in a language model. "gaussian", "gaussian5":
    standard deviation 1 and 5. "uniform": all equal. "tied": Gaussian of standard deviation 2,
    rounded to integers, so that thousands of tokens share a logit at any boundary.
    """
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.empty(count, rows, vocab, dtype=dtype, device=device)
    for batch in logits:  # one by one: the float32 in between need not be as large as all
        if distribution == "peaked":
            rank = 1 + vocab * torch.rand(rows, vocab, generator=generator, device=device)
            batch.copy_(12 - 1.8 * rank.log_())
        elif distribution == "uniform":
            batch.zero_()
        elif distribution in ("gaussian", "gaussian5", "tied"):
            normal = torch.randn(rows, vocab, generator=generator, device=device)
            if distribution == "gaussian5":
                normal *= 5
            if distribution == "tied":
                normal = (2 * normal).round_()
            batch.copy_(normal)
        else:
            raise ValueError(
                f"bench: distribution must be one of {DISTRIBUTIONS}, got {distribution!r}"
            )
    return logits


def parameters(rows: int, device: str = "cpu", seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Heterogeneous T in [0.1, 2] and P in [0.1, 1], float32 [rows]."""
    generator = torch.Generator().manual_seed(seed)  # the same on every device
    uniform = torch.rand(2, rows, generator=generator).to(device)
    ranges = (TEMPERATURES, TOP_PS)
    return tuple(low + (high - low) * uniform[i] for i, (low, high) in enumerate(ranges))

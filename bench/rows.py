"""Logits to time with: several batches, so that a round does not find its rows in the cache."""

from __future__ import annotations

import torch

MIXED = "mixed"
DISTRIBUTIONS = ("peaked", "gaussian", "gaussian5", "uniform", "tied", MIXED)
# The rows of a mixed batch, by turns: greedy, without a filter, ordinary, and three hard ones. What
# is not given is drawn as for other batches.
_MIXED_ROWS: tuple[tuple[str, dict[str, float]], ...] = (
    ("peaked", {"temperature": 0.0}),
    ("peaked", {"top_p": 1.0}),
    ("peaked", {}),
    ("gaussian", {}),
    ("uniform", {}),
    ("tied", {}),
)
MIXED_KINDS = len(_MIXED_ROWS)  # row r is of kind r % MIXED_KINDS
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
) -> torch.Tensor:
    """Logits [count, rows, vocab].

    "peaked": the r-th token has p ~ r^-1.8, as in a language model. "gaussian", "gaussian5":
    standard deviation 1 and 5. "uniform": all equal. "tied": Gaussian of standard deviation 2,
    rounded to integers, so that thousands of tokens share a logit at any boundary. "mixed": rows of
    several of these by turns.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"bench: distribution must be one of {DISTRIBUTIONS}, got {distribution!r}"
        )
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(count, rows, vocab, dtype=dtype, device=device)
    for batch in logits:  # one by one: the float32 in between need not be as large as all
        if distribution == MIXED:
            for first, (kind, _) in enumerate(_MIXED_ROWS):
                _fill(batch[first::MIXED_KINDS], kind, generator)
        else:
            _fill(batch, distribution, generator)
    return logits


def _fill(batch: torch.Tensor, distribution: str, generator: torch.Generator) -> None:
    shape = {"size": batch.shape, "generator": generator, "device": batch.device}
    if distribution == "peaked":
        rank = 1 + batch.shape[-1] * torch.rand(**shape)
        batch.copy_(12 - 1.8 * rank.log_())
    elif distribution == "uniform":
        batch.zero_()
    else:
        normal = torch.randn(**shape)
        if distribution == "gaussian5":
            normal *= 5
        if distribution == "tied":
            normal = (2 * normal).round_()
        batch.copy_(normal)


def parameters(
    distribution: str, rows: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """T and P, float32 [rows]: heterogeneous in [0.1, 2] and [0.1, 1], but for some mixed rows."""
    generator = torch.Generator().manual_seed(1)  # the same on every device
    uniform = torch.rand(2, rows, generator=generator)
    ranges = (TEMPERATURES, TOP_PS)
    temperature, top_p = (low + (high - low) * uniform[i] for i, (low, high) in enumerate(ranges))
    if distribution == MIXED:
        for first, (_, given) in enumerate(_MIXED_ROWS):
            own = slice(first, None, MIXED_KINDS)
            temperature[own] = given.get("temperature", temperature[own])
            top_p[own] = given.get("top_p", top_p[own])
    return temperature.to(device), top_p.to(device)

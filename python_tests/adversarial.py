"""Rows and parameters made to find faults in the blocks, lists and guesses of the CPU sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 512  # csrc/cpu/row.h

# Below, at and above the sizes at which the code takes another path: a step, a block, the list.
VOCAB_SIZES = (1, 2, 3, 63, 64, 65, 511, 512, 513, 1000, 11775, 11777, 12287, 12288, 12289, 20000)
LARGE_VOCAB = 151936
TEMPERATURES = (
    0.0,
    1e-45,
    1e-38,
    1e-31,
    1e-30,
    0.01,
    0.3,
    0.7,
    1.0,
    1.5,
    3.0,
    30.0,
    1e30,
    2e36,
    1e38,
)
TOP_PS = (0.0, 1e-30, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999, 1 - 2**-23, 1 - 2**-24, 1.0)
MIN_PS = (0.0, 1e-45, 1e-9, 0.01, 0.1, 0.5, 1.0, 1.5)
TOP_KS = (0, 1, 2, 5, 50, 300, 1000, 3500, 12000, 15000, 10**6)


def _sampled(vocab: int) -> Tensor:
    """Columns that csrc/cpu/sampled_interval.h looks at where column 0 is the maximum, 4."""
    column = torch.arange(vocab)
    number = column // BLOCK
    padded = (vocab - number * BLOCK + 63) // 64 * 64
    places = padded.clamp(max=BLOCK) // 16
    order_key = 0xC0800000  # of 4.0
    shift = (order_key * 0x9E3779B1 & 0xFFFFFFFF) >> 27
    attempts = [(number * 7 + shift + 11 * attempt) % places for attempt in range(3)]
    return sum(column % BLOCK // 16 == place for place in attempts).bool()


def _misleading(seen: Tensor, unseen: Tensor) -> Tensor:
    """`seen` at the places of the sampler's samples, `unseen` elsewhere."""
    row = seen.where(_sampled(len(seen)), unseen).clamp(max=3.5)
    row[0] = 4.0
    return row


def _normal(vocab: int, generator: torch.Generator) -> Tensor:
    return torch.randn(vocab, generator=generator)


def _ascending(vocab: int, generator: torch.Generator) -> Tensor:
    return (3 * _normal(vocab, generator)).sort().values


def _descending(vocab: int, generator: torch.Generator) -> Tensor:
    return _ascending(vocab, generator).flip(0)


def _one_block(vocab: int, generator: torch.Generator) -> Tensor:
    row = _normal(vocab, generator) - 30
    start = int(torch.randint(0, max(1, vocab - BLOCK), (1,), generator=generator))
    row[start : start + BLOCK] += 30
    return row


def _periodic(period: int) -> Callable[[int, torch.Generator], Tensor]:
    def make(vocab: int, generator: torch.Generator) -> Tensor:
        return _normal(period, generator).repeat(vocab // period + 1)[:vocab].clone()

    return make


def _few_values(vocab: int, generator: torch.Generator) -> Tensor:
    number = int(torch.randint(1, 6, (1,), generator=generator))
    return _normal(number, generator)[torch.randint(number, (vocab,), generator=generator)]


def _outlier(vocab: int, generator: torch.Generator) -> Tensor:
    row = _normal(vocab, generator)
    row[int(torch.randint(vocab, (1,), generator=generator))] = 40.0
    return row


def _one_float_apart(vocab: int, generator: torch.Generator) -> Tensor:
    return 1.0 + torch.randint(0, 4096, (vocab,), generator=generator) * 2.0**-23


def _huge(vocab: int, generator: torch.Generator) -> Tensor:
    return 1e30 * _normal(vocab, generator)


def _whole_range(vocab: int, generator: torch.Generator) -> Tensor:
    return 3.3e38 * (2 * torch.rand(vocab, generator=generator) - 1)


def _denormal(vocab: int, generator: torch.Generator) -> Tensor:
    return 1e-40 * _normal(vocab, generator)


def _signed_zeros(vocab: int, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(vocab, generator=generator) < 0.5, -0.0, 0.0)


def _unsampled_mass(vocab: int, generator: torch.Generator) -> Tensor:
    return _misleading(torch.full((vocab,), -9.0), _normal(vocab, generator))


def _sampled_mass(vocab: int, generator: torch.Generator) -> Tensor:
    return _misleading(_normal(vocab, generator), torch.full((vocab,), -9.0))


def _nested_lies(vocab: int, generator: torch.Generator) -> Tensor:
    """The sample is spread evenly, the rest lies close together: each guess is as bad as it can."""
    spread = -8 * torch.rand(vocab, generator=generator)
    close = -3.0 - 1e-4 * torch.rand(vocab, generator=generator)
    return _misleading(spread, close)


def _geometric(vocab: int, generator: torch.Generator) -> Tensor:
    """Differences shrink by powers of two: every bin of a histogram but one is empty."""
    exponents = torch.randint(1, 24, (vocab,), generator=generator).double()
    return (1.0 + torch.exp2(-exponents)).float()


def _biased_sums(vocab: int, generator: torch.Generator) -> Tensor:
    """Equal weights side by side, whose float32 sums are all rounded to the same side."""
    row = -20.0 + torch.rand(vocab, generator=generator)
    row[::17] = -3.0
    row[BLOCK : 5 * BLOCK] = -float(torch.rand(1, generator=generator))
    row[0] = 0.0
    return row


def _peaked(vocab: int, generator: torch.Generator) -> Tensor:
    return 10 - 1.5 * (1 + vocab * torch.rand(vocab, generator=generator)).log()


def _gaussian(vocab: int, generator: torch.Generator) -> Tensor:
    return 3 * _normal(vocab, generator)


def _nearly_flat(vocab: int, generator: torch.Generator) -> Tensor:
    return 2 + 1e-3 * _normal(vocab, generator)


def _equal(vocab: int, generator: torch.Generator) -> Tensor:
    return _normal(1, generator).repeat(vocab)


FAMILIES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "peaked": _peaked,
    "gaussian": _gaussian,
    "nearly_flat": _nearly_flat,
    "equal": _equal,
    "ascending": _ascending,
    "descending": _descending,
    "one_block": _one_block,
    "period_16": _periodic(16),
    "period_512": _periodic(512),
    "few_values": _few_values,
    "outlier": _outlier,
    "one_float_apart": _one_float_apart,
    "huge": _huge,
    "whole_range": _whole_range,
    "denormal": _denormal,
    "signed_zeros": _signed_zeros,
    "unsampled_mass": _unsampled_mass,
    "sampled_mass": _sampled_mass,
    "nested_lies": _nested_lies,
    "geometric": _geometric,
    "biased_sums": _biased_sums,
}


def make_row(
    family: str, vocab: int, dtype: torch.dtype, masked: float, generator: torch.Generator
) -> Tensor:
    """One row of a family, a share of it -inf, with at least one finite logit in column 0."""
    largest = torch.finfo(dtype).max
    row = FAMILIES[family](vocab, generator).clamp(-largest, largest).to(dtype)
    if masked > 0:
        hidden = torch.rand(vocab, generator=generator) < masked
        hidden[0] = False
        row = row.masked_fill(hidden, -torch.inf)
    return row

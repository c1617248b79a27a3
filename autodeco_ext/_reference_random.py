"""The random numbers of the reference: a counter-based generator on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from autodeco_ext._reference_checks import PerRowInt, as_int64

_UINT32 = 0xFFFFFFFF


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 (Salmon et al., SC 2011) on int64 tensors that hold uint32 values.

    >>> zero = torch.tensor(0)
    >>> [hex(word) for word in philox4x32_10((zero, zero, zero, zero), (zero, zero))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, so all 64 bits are there; masking undoes the arithmetic shift's sign.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & _UINT32) ^ c1 ^ k0, b & _UINT32
        c2, c3 = ((a >> 32) & _UINT32) ^ c3 ^ k1, a & _UINT32
        k0, k1 = (k0 + 0x9E3779B9) & _UINT32, (k1 + 0xBB67AE85) & _UINT32
    return c0, c1, c2, c3


def philox_uniform(
    seed: PerRowInt, offset: PerRowInt = 0, stream: PerRowInt = 0, sample: PerRowInt = 0
) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits, float64, elementwise over the arguments.

    u = ((x1 << 32 | x0) >> 11) * 2^-53 with x = Philox4x32-10 of key (seed_lo, seed_hi) and counter
    (offset_lo, offset_hi, stream, sample).

    Args:
        seed, offset: int or int64 tensor, its bit pattern read as uint64.
        stream: 0 sample, 1 speculative accept, 2 residual, 3 easy-token drop.
        sample: number of the draw where one row is drawn several times.

    >>> philox_uniform(torch.tensor([1, 2]), 7) == philox_uniform(torch.tensor([1, 9]), 7)
    tensor([ True, False])
    """
    given = {"seed": seed, "offset": offset, "stream": stream, "sample": sample}
    device = next((x.device for x in given.values() if isinstance(x, Tensor)), None)
    seed, offset, stream, sample = torch.broadcast_tensors(
        *(as_int64("philox_uniform", name, value, device) for name, value in given.items())
    )
    counter = (offset & _UINT32, (offset >> 32) & _UINT32, stream & _UINT32, sample & _UINT32)
    x0, x1, _, _ = philox4x32_10(counter, (seed & _UINT32, (seed >> 32) & _UINT32))
    return (((x1 << 32 | x0) >> 11) & (2**53 - 1)).double() * 2.0**-53

"""More elements than 32 bits can count, on the CPU."""

from __future__ import annotations

import mmap

import pytest
import torch
from oracle import make_rows

import autodeco_ext

VOCAB = 151_936


def zeros(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until they are written to: private pages share one of zeros."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype)


def far_rows(dtype: torch.dtype) -> torch.Tensor:
    return make_rows("gaussian", 4, VOCAB, dtype, torch.Generator().manual_seed(7))


@pytest.mark.slow
def test_more_than_2_to_the_31_logits() -> None:
    rows = 2**31 // VOCAB + 5
    logits = zeros(rows * VOCAB, torch.bfloat16).view(rows, VOCAB)
    assert logits[:-4].numel() > 2**31
    far = far_rows(torch.bfloat16)
    logits[-4:] = far
    seed = torch.arange(rows)
    few = {"valid_vocab": 5000}  # where the op can be told to read no more: it takes long enough

    info = autodeco_ext.sample(logits, 0.9, 0.95, seed=seed, return_info=True, **few)
    expected = autodeco_ext.sample(far, 0.9, 0.95, seed=seed[-4:], return_info=True, **few)
    for got, alone in zip(info, expected, strict=True):
        assert torch.equal(got[-4:], alone)
    assert (info.kept[:-4] == info.kept[0]).all()  # those before are all equal

    stats = autodeco_ext.distribution_stats(logits, 0.9)
    assert torch.equal(stats[-4:], autodeco_ext.distribution_stats(far, 0.9))
    assert (stats[:-4] == stats[0]).all()

    kept = autodeco_ext.kept_indices(logits, 0.9, top_k=3, **few)
    alone = autodeco_ext.kept_indices(far, 0.9, top_k=3, **few)
    assert torch.equal(kept.ids[-12:], alone.ids)

    def losses(logits: torch.Tensor) -> autodeco_ext.losses.AutoDecoLoss:
        value = torch.ones(len(logits))
        labels = torch.full((len(logits),), VOCAB - 1)
        return autodeco_ext.autodeco_loss(
            logits, value, 0.9 * value, labels, easy_token_drop=0.0, reduction="none"
        )

    for got, alone in zip(losses(logits), losses(far), strict=True):
        assert torch.equal(got[-4:], alone)
        assert (got[:-4] == got[0]).all()


@pytest.mark.slow
def test_rows_that_lie_further_than_2_to_the_31_elements_apart() -> None:
    stride = 2**31 + 11
    far = far_rows(torch.float32)[:2]
    logits = zeros(stride + VOCAB, torch.float32).as_strided((2, VOCAB), (stride, 1))
    out = zeros(stride + VOCAB, torch.float32).as_strided((2, VOCAB), (stride, 1))
    logits.copy_(far)
    expected = autodeco_ext.filter_logits(far, 0.9, 0.95)
    assert torch.equal(autodeco_ext.filter_logits(logits, 0.9, 0.95, out=out), expected)
    assert torch.equal(out, expected)
    seed = torch.tensor([3, 4])
    assert torch.equal(
        autodeco_ext.sample(logits, 0.9, 0.95, seed=seed),
        autodeco_ext.sample(far, 0.9, 0.95, seed=seed),
    )

"""`distribution_stats` against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import ROW_KINDS, make_rows

import autodeco_ext
from autodeco_ext import reference


def assert_stats_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-5 relative plus 1e-9 absolute; the entropy 1e-5 absolute."""
    entropy = got[..., 1].double() - expected[..., 1]
    assert entropy.abs().max() < 1e-5
    for feature in (0, 2, 3):
        torch.testing.assert_close(
            got[..., feature].double(), expected[..., feature], rtol=1e-5, atol=1e-9
        )


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_match_the_reference(backend: str, kind: str, dtype: torch.dtype) -> None:
    for vocab in (2, 3, 17, 1000, 32003):
        generator = torch.Generator().manual_seed(vocab)
        logits = make_rows(kind, 12, vocab, dtype, generator)
        temperature = 0.05 + 2 * torch.rand(12, generator=generator)
        got = autodeco_ext.distribution_stats(logits, temperature)
        assert_stats_close(got, reference.distribution_stats(logits, temperature))


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-3, 1e3, 3e38])
def test_extreme_temperatures_are_finite_and_right(backend: str, temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.5, 0.0, -7.0, 2.5, 2.5]])
    got = autodeco_ext.distribution_stats(logits, temperature)
    assert_stats_close(got, reference.distribution_stats(logits, temperature))


@pytest.mark.parametrize("temperature", [1e30, 1e33, 1e34, 1e35, 1e36, 3e37])
def test_sums_at_huge_temperatures_do_not_overflow(backend: str, temperature: float) -> None:
    """A whole block of tokens above those before it, by less than moves the reference."""
    logits = torch.zeros(1, 1024)
    logits[:, 512:] = 2.7 * temperature
    got = autodeco_ext.distribution_stats(logits, temperature)
    assert_stats_close(got, reference.distribution_stats(logits, temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_certain_token_has_no_more_than_all_of_the_mass(backend: str, dtype: torch.dtype) -> None:
    for vocab in (2, 449, 470, 512, 670, 714, 1000, 12289):
        for column in (0, vocab // 2, vocab - 1):
            logits = torch.full((1, vocab), -200.0, dtype=dtype)
            logits[0, column] = 0.0
            largest, entropy, _, five_largest = autodeco_ext.distribution_stats(logits)[0].tolist()
            assert largest <= 1 and five_largest <= 1
            assert entropy > -1e-7


def test_a_vocabulary_of_one_is_certain(op_device: str) -> None:
    got = autodeco_ext.distribution_stats(torch.tensor([[3.0]]), 1.0)
    assert got[0].tolist() == pytest.approx([1.0, 0.0, 0.0, 1.0], abs=1e-7)


def test_results_do_not_depend_on_batch_or_threads(
    backend: str, set_num_threads: Callable[[int], None]
) -> None:
    logits = make_rows("gaussian", 33, 10_001, torch.float32, torch.Generator().manual_seed(2))
    whole = autodeco_ext.distribution_stats(logits, 0.7)
    set_num_threads(3)
    threaded = autodeco_ext.distribution_stats(logits, 0.7)
    assert torch.equal(whole, threaded)
    assert torch.equal(whole[9:10], autodeco_ext.distribution_stats(logits[9:10], 0.7))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_more_columns_than_can_be_counted_are_refused(device: str) -> None:
    autodeco_ext.distribution_stats(torch.zeros(1, 2**20, device=device))
    with pytest.raises(ValueError, match="must have at most 1048576 columns, got 1048577"):
        autodeco_ext.distribution_stats(torch.zeros(1, 2**20 + 1, device=device))


@pytest.mark.parametrize("vocab", [100, 1000, 32003])
@pytest.mark.parametrize("order", ["random", "descending", "outliers first", "partly excluded"])
def test_variance_of_a_nearly_flat_row_is_not_lost_to_rounding(
    backend: str, vocab: int, order: str
) -> None:
    """Relative, where a difference of sums of squares would have no correct digit left."""
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(vocab))
    if order == "descending":
        logits = logits.sort(-1, descending=True).values
    elif order == "outliers first":
        logits[:, : vocab // 100] += 4
    elif order == "partly excluded":
        logits[:, 1::37] = -torch.inf
    temperature = torch.tensor([5.0, 10.0, 30.0, 100.0])
    got = autodeco_ext.distribution_stats(logits, temperature)[:, 2].double()
    expected = reference.distribution_stats(logits, temperature)[:, 2]
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=0)

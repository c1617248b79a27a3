"""Draws from kept sets too large to be listed, which the CPU sampler draws block by block."""

from __future__ import annotations

from collections.abc import Callable

import adversarial
import pytest
import torch
from oracle import assert_kept, tokens_pvalue

import autodeco_ext

VOCAB = 151_936
FILTERS = {
    "none": {},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 60_000},
    "top_k and top_p": {"top_k": 90_000, "top_p": 0.8},
    "min_p": {"min_p": 0.01},
}


@pytest.mark.slow
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("family", ["nearly_flat", "unsampled_mass"])
def test_frequencies_of_large_kept_sets(backend: str, family: str, filters: dict) -> None:
    generator = torch.Generator().manual_seed(2)
    row = adversarial.make_row(family, VOCAB, torch.float32, 0.2, generator)[None]
    kept = autodeco_ext.filter_logits(row, **filters) > -torch.inf
    assert_kept(row, kept, **filters)
    assert kept.sum() > 12_288
    probs = row[0].double().masked_fill(~kept[0], -torch.inf).softmax(-1)
    tokens = autodeco_ext.sample(row, **filters, seed=17, num_samples=250_000)
    assert tokens_pvalue(tokens, probs) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 100_000}, {"top_p": 0.99995}, {"min_p": 1e-10}], ids=str
)
def test_rare_tokens_are_drawn_at_their_rate_and_evenly(backend: str, filters: dict) -> None:
    # 150,000 tokens of about 1e-9 each beside one that has nearly everything.
    row = torch.zeros(1, 150_001)
    row[0, 70_000] = 20.7
    kept = autodeco_ext.filter_logits(row, **filters)[0] > -torch.inf
    probs = row[0].double().masked_fill(~kept, -torch.inf).softmax(-1)
    tokens = autodeco_ext.sample(row, **filters, seed=5, num_samples=1_000_000)[0]
    rare = tokens[tokens != 70_000]
    expected = (1 - float(probs[70_000])) * len(tokens)
    assert abs(len(rare) - expected) < 5 * expected**0.5
    assert kept[rare].all()
    # Ten stretches of columns are hit alike.
    stretch = rare // 15_001
    weight = torch.zeros(10, dtype=torch.float64)
    columns = kept.nonzero()[:, 0]
    weight.index_add_(0, columns // 15_001, probs[columns].where(columns != 70_000, 0.0))
    assert tokens_pvalue(stretch, weight) > 1e-4


def outcomes(
    rows: torch.Tensor, seed: torch.Tensor | int, **filters: torch.Tensor
) -> list[tuple[torch.Tensor, ...]]:
    """Of each row: the draw and what is known of it, the filtered logits, the kept columns."""
    draw = autodeco_ext.sample(rows, **filters, seed=seed, offset=0, return_info=True)
    filtered = autodeco_ext.filter_logits(rows, **filters)
    offsets, ids = autodeco_ext.kept_indices(rows, **filters)
    kept = ids.split(offsets.diff().tolist())
    return list(zip(*(t.reshape(len(kept), -1) for t in (*draw, filtered)), kept, strict=True))


def assert_same(
    expected: list[tuple[torch.Tensor, ...]], got: list[tuple[torch.Tensor, ...]]
) -> None:
    for one, other in zip(expected, got, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", sorted(adversarial.FAMILIES))
def test_rows_that_are_sampled_depend_on_nothing_else(
    backend: str, family: str, dtype: torch.dtype, set_num_threads: Callable[[int], None]
) -> None:
    generator = torch.Generator().manual_seed(6)
    rows = torch.stack(
        [adversarial.make_row(family, 40_000, dtype, 0.0, generator) for _ in range(7)]
    )
    filters = {
        "temperature": torch.tensor([0.7, 1.0, 1.5, 3.0, 1.0, 1.0, 1.0]),
        "top_p": torch.tensor([0.5, 0.9, 0.99, 0.7, 1.0, 0.999999, 0.8]),
        "top_k": torch.tensor([0, 30_000, 0, 20_000, 13_000, 0, 0]),
    }
    seed = torch.arange(7) * 1_000_003
    results = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        results.append(outcomes(rows, seed, **filters))
    order = torch.randperm(7, generator=generator)
    moved = outcomes(
        rows[order].clone(), seed[order], **{name: value[order] for name, value in filters.items()}
    )
    results.append([moved[place] for place in order.argsort()])
    for other in results[1:]:
        assert_same(results[0], other)
    alone = outcomes(
        rows[3].clone(), int(seed[3]), **{name: value[3] for name, value in filters.items()}
    )
    assert_same(results[0][3:4], alone)

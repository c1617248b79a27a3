"""`kept_indices` on CUDA: what filter_logits keeps, capacities, graphs, waiting, invalid rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_tools import assert_same, capture, torch_may_not_wait, waits_for_the_device
from oracle import ROW_KINDS, make_rows, random_parameters

import autodeco_ext


def cuts(device: torch.device, kind: str, rows: int, vocab: int, seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)
    given = {
        "logits": make_rows(kind, rows, vocab, torch.bfloat16, random),
        **random_parameters(rows, vocab, seed=seed + 1),
    }
    return {name: value.to(device) for name, value in given.items()}


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (300, 1000), (17, 32_003), (3, 151_936)])
def test_the_ids_are_where_filter_logits_keeps(
    cuda: torch.device, kind: str, rows: int, vocab: int
) -> None:
    given = cuts(cuda, kind, rows, vocab)
    kept = autodeco_ext.filter_logits(**given) > -torch.inf
    offsets, ids = autodeco_ext.kept_indices(**given)
    assert offsets.dtype == torch.int64 and ids.dtype == torch.int32
    assert offsets[0] == 0
    assert torch.equal(offsets[1:], kept.sum(-1).cumsum(0))
    assert torch.equal(ids.long(), kept.nonzero()[:, 1])


def test_a_capacity_limits_what_is_written_and_not_what_is_counted(cuda: torch.device) -> None:
    given = cuts(cuda, "gaussian", 40, 4001)
    offsets, ids = autodeco_ext.kept_indices(**given)
    total = int(offsets[-1])
    for capacity in (0, 1, total - 1, total, total + 100):
        got = autodeco_ext.kept_indices(**given, capacity=capacity)
        assert torch.equal(got.offsets, offsets)
        assert got.ids.shape == (capacity,)
        assert torch.equal(got.ids[:total], ids[:capacity])
        assert (got.ids[total:] == -1).all()


def test_with_a_capacity_a_graph_replays_and_nothing_waits(cuda: torch.device) -> None:
    given = cuts(cuda, "gaussian", 40, 4001)
    capacity = 40 * 4001

    def call() -> Any:
        return autodeco_ext.kept_indices(**given, capacity=capacity)

    def strict() -> Any:
        with torch_may_not_wait():
            return call()

    graph, result = capture(call)
    for seed in range(1, 4):
        for name, value in cuts(cuda, "peaked", 40, 4001, seed).items():
            given[name].copy_(value)
        graph.replay()
        assert_same(result, call())
    assert not waits_for_the_device(strict)


def test_an_invalid_row_has_no_ids(cuda: torch.device) -> None:
    given = cuts(cuda, "gaussian", 8, 4001)
    given["logits"][3, 7] = torch.nan
    offsets, _ = autodeco_ext.kept_indices(**given)
    kept = autodeco_ext.filter_logits(**given) > -torch.inf
    assert not kept[3].any()
    assert torch.equal(offsets.diff(), kept.sum(-1))
    with pytest.raises(ValueError, match=r"logits must not contain NaN, got NaN in row 3"):
        autodeco_ext.kept_indices(**given, check=True)

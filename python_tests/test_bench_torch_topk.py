"""The peer with a window: what it draws where the window holds the nucleus, and where not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch

from bench.providers import Provider, torch_sort, torch_topk
from bench.providers.compiled import compiled
from bench.rows import DTYPES

PROVIDERS = [
    pytest.param(torch_topk.SAMPLE, id="eager"),
    pytest.param(torch_topk.SAMPLE_COMPILED, id="compiled", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_row_that_falls_out_of_the_window_is_drawn_from_all_of_its_nucleus(
    provider: Provider, dtype: str
) -> None:
    vocab = 4 * torch_topk.WINDOW
    # Of falling logits the window holds the first. All tokens are nearly as likely at T = 1, and
    # one alone is at T = 1e-5.
    logits = (-torch.arange(vocab) / (8 * vocab)).to(DTYPES[dtype])
    for short in ([], [2], [0, 1, 3]):
        flat = torch.zeros(4, dtype=torch.bool)
        flat[short] = True
        top_p = torch.full((4,), 0.9)
        temperature = torch.where(flat, 1.0, 1e-5)
        drawn = torch.stack(
            [provider.run(logits.expand(4, vocab), temperature, top_p) for _ in range(40)]
        )
        assert (logits[drawn[:, ~flat]] == logits.amax()).all()
        assert (drawn[:, flat] < 0.95 * vocab).all()
        # Three quarters of the nucleus lie outside the window: 40 draws inside are one in 1e22.
        assert (drawn[:, flat] >= torch_topk.WINDOW).any(0).all()


@pytest.mark.slow
def test_another_number_of_rows_out_of_the_window_makes_no_new_graph() -> None:
    vocab = 2 * torch_topk.WINDOW
    logits, top_p = torch.zeros(5, vocab), torch.ones(5)
    counter = torch._dynamo.utils.counters["stats"]
    torch_topk.SAMPLE_COMPILED.run(logits, torch.ones(5), top_p)  # all five
    graphs = counter["unique_graphs"]
    for short in (1, 3, 5):
        logits[short:, 0] = 100.0  # the others keep a token alone
        torch_topk.SAMPLE_COMPILED.run(logits, torch.ones(5), top_p)
        logits.zero_()
    assert graphs > 0 and counter["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize("function", [torch_topk._draw_in_window, torch_sort.sample])
def test_one_process_compiles_for_every_dtype_and_shape(
    monkeypatch: pytest.MonkeyPatch, function: Callable
) -> None:
    # Dynamo counts the graphs whoever makes code of them; inductor would take a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    run = compiled(function)
    vocabs = (torch_topk.WINDOW // 2, 2 * torch_topk.WINDOW)
    with torch._dynamo.config.patch(recompile_limit=4):
        for dtype, rows, vocab in itertools.product(DTYPES.values(), (1, 3), vocabs):
            ones = torch.ones(rows)
            run(torch.zeros(rows, vocab, dtype=dtype), ones, ones)

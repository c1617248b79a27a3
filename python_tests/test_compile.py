"""The ops inside torch: opcheck, torch.compile, inference mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autodeco_ext
from autodeco_ext import AutoDecoConfig, AutoDecoHeads

OPS = torch.ops.autodeco_ext
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
)


def make_logits(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 37, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def filters(per_row: bool, device: torch.device) -> tuple[Any, ...]:
    if not per_row:
        return (None, 0.9, None, 0.8, None, 20, None, 0.01, None, 37)
    parameters = (
        torch.linspace(0.1, 2, 4),
        0.0,
        torch.linspace(0.3, 1, 4),
        0.0,
        torch.tensor([0, 5, 9, 37]),
        0,
        torch.full((4,), 0.01),
        0.0,
        torch.tensor([37, 30, 20, 37]),
        0,
    )
    return tuple(p.to(device) if isinstance(p, torch.Tensor) else p for p in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_row", [False, True])
def test_opcheck(device: torch.device, per_row: bool, dtype: torch.dtype) -> None:
    logits = make_logits(device, dtype)
    keys = (torch.arange(4, device=device), 0, None, 3)
    for num_samples in (None, 2):
        arguments = (logits, *filters(per_row, device), *keys, num_samples, True)
        torch.library.opcheck(OPS.sample, arguments, test_utils=CHECKS)
        torch.library.opcheck(OPS.sample_with_info, arguments, test_utils=CHECKS)
    out = torch.empty(4, 37, device=device)
    torch.library.opcheck(
        OPS.filter_logits_out,
        (logits, *filters(per_row, device), -float("inf"), out),
        test_utils=CHECKS,
    )
    # Without a capacity the number of ids depends on the logits: no graph of fixed shapes.
    for capacity, checks in ((50, CHECKS), (None, (*CHECKS[:-1], "test_aot_dispatch_dynamic"))):
        torch.library.opcheck(
            OPS.kept_indices,
            (logits, *filters(per_row, device), capacity, True),
            test_utils=checks,
        )
    temperature = torch.linspace(0.1, 2, 4, device=device) if per_row else None
    torch.library.opcheck(OPS.distribution_stats, (logits, temperature, 0.7), test_utils=CHECKS)


@pytest.mark.slow
def test_a_full_graph_compile_equals_eager(device: torch.device) -> None:
    logits = make_logits(device)
    temperature, seed = torch.linspace(0.1, 2, 4, device=device), torch.arange(4, device=device)

    def step(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, ...]:
        info = autodeco_ext.sample(
            x * 2, t, 0.9, 20, 0.01, seed=s, offset=3, valid_vocab=30, return_info=True
        )
        tokens = autodeco_ext.sample(x, t, seed=7, num_samples=2)
        filtered = autodeco_ext.filter_logits(x, t, 0.9)
        return (*info, tokens, filtered + 1, autodeco_ext.distribution_stats(x, t))

    compiled = torch.compile(step, fullgraph=True)
    for expected, got in zip(
        step(logits, temperature, seed), compiled(logits, temperature, seed), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_scalars_may_change_between_calls_of_a_compiled_graph(device: torch.device) -> None:
    logits = make_logits(device)

    def step(x: torch.Tensor, t: float, p: float, offset: int) -> torch.Tensor:
        tokens = autodeco_ext.sample(x, t, p, seed=5, offset=offset)
        return tokens + autodeco_ext.filter_logits(x, t, p).argmax(-1)

    compiled = torch.compile(step, fullgraph=True)
    # More values than torch compiles variants for, so a constant in the graph would fail.
    for number in range(12):
        scalars = (0.5 + 0.1 * number, 1.0 - 0.05 * number, 3 + number)
        assert torch.equal(compiled(logits, *scalars), step(logits, *scalars))


@pytest.mark.slow
def test_a_compiled_draw_without_a_seed_is_fresh_each_time(device: torch.device) -> None:
    compiled = torch.compile(lambda x: autodeco_ext.sample(x), fullgraph=True)
    uniform = torch.zeros(4, 1000, device=device)
    assert not torch.equal(compiled(uniform), compiled(uniform))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 3])
def test_one_compiled_graph_serves_every_batch_size(device: torch.device, seed: int | None) -> None:
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=8)).to(device)

    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = autodeco_ext.sample(x, 0.8, 0.9, seed=seed)
        return drawn, autodeco_ext.decode_step(x[:, :8], x, heads, seed=seed).tokens

    compiled = torch.compile(step, fullgraph=True)
    for rows in (3, 5, 9):
        logits = torch.randn(rows, 40, device=device)
        logits[:, 7] = 60.0  # without a seed, too, there is one token to draw
        expected = step(logits)
        assert all(map(torch.equal, compiled(logits), expected))


@pytest.mark.slow
def test_an_invalid_row_in_a_compiled_graph_raises_the_same_sentence(device: torch.device) -> None:
    compiled = torch.compile(
        lambda x: autodeco_ext.sample(x, seed=1, check=True) + 1, fullgraph=True
    )
    with pytest.raises(RuntimeError, match=r"autodeco_ext.sample: logits must not contain NaN"):
        compiled(torch.full((2, 5), float("nan"), device=device))


def test_inference_mode_and_grad_mode_agree(device: torch.device) -> None:
    logits = make_logits(device)
    expected = autodeco_ext.sample(logits, 0.8, 0.9, seed=1)
    with torch.inference_mode():
        assert torch.equal(autodeco_ext.sample(logits, 0.8, 0.9, seed=1), expected)
    tracked = logits.clone().requires_grad_()
    info = autodeco_ext.sample(tracked, 0.8, 0.9, seed=1, return_info=True)
    assert torch.equal(info.tokens, expected)
    assert not info.logprobs.requires_grad

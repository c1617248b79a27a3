"""`filter_logits` against the reference and against Hugging Face's chain of warpers."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_close, make_rows
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import autodeco_ext
from autodeco_ext import reference

INF = float("inf")


def rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return make_rows("gaussian", 40, 777, dtype, torch.Generator().manual_seed(1))


def test_equals_the_hugging_face_warper_chain(backend: str) -> None:
    logits = rows()
    chain = [
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(200),
        TopPLogitsWarper(0.92),
        MinPLogitsWarper(0.003),
    ]
    expected = logits
    for warper in chain:
        expected = warper(None, expected)
    got = autodeco_ext.filter_logits(logits, 0.7, 0.92, 200, 0.003)
    assert torch.equal(got > -INF, expected > -INF)
    assert_close(got, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_values_are_logits_over_temperature(backend: str, dtype: torch.dtype) -> None:
    logits = rows(dtype)
    temperature = torch.linspace(0.1, 3, 40)
    got = autodeco_ext.filter_logits(logits, temperature, top_k=50, filter_value=-1e4)
    expected = reference.filter_logits(logits, temperature, top_k=50, filter_value=-1e4)
    assert_close(got, expected, dtype)
    assert got.dtype == torch.float32


def test_values_saturate_instead_of_overflowing(op_device: str) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0]])
    got = autodeco_ext.filter_logits(logits, 1e-3)
    largest = torch.finfo(torch.float32).max
    assert got[0, 0] == largest
    assert autodeco_ext.filter_logits(logits, 3e38)[0].isfinite().all()


def test_zero_temperature_leaves_the_largest_logit_as_it_is(op_device: str) -> None:
    got = autodeco_ext.filter_logits(torch.tensor([[1.0, 7.5, 2.0]]), 0.0)
    assert got.tolist() == [[-INF, 7.5, -INF]]


def test_writes_into_out_and_only_there(backend: str) -> None:
    logits = rows()
    expected = autodeco_ext.filter_logits(logits, 0.8, 0.9)
    fenced = torch.full((42, 800), 123.0)
    out = fenced[1:41, 11:788]
    assert autodeco_ext.filter_logits(logits, 0.8, 0.9, out=out) is out
    assert torch.equal(out, expected)
    fenced[1:41, 11:788] = 123.0
    assert (fenced == 123.0).all()
    in_place = logits.clone()
    autodeco_ext.filter_logits(in_place, 0.8, 0.9, out=in_place)
    assert torch.equal(in_place, expected)


def test_columns_beyond_valid_vocab_get_the_filter_value(op_device: str) -> None:
    got = autodeco_ext.filter_logits(torch.zeros(2, 6), valid_vocab=torch.tensor([2, 6]))
    assert (got > -INF).sum(-1).tolist() == [2, 6]


def test_out_may_have_its_rows_in_any_order(op_device: str) -> None:
    logits = rows().reshape(2, 5, 4, 777)
    out = torch.empty(4, 2, 5, 800).permute(1, 2, 0, 3)[..., :777]
    got = autodeco_ext.filter_logits(logits, 0.8, 0.9, out=out)
    assert torch.equal(got, autodeco_ext.filter_logits(logits, 0.8, 0.9))


def test_filter_value_is_one_number_rounded_to_float32(op_device: str) -> None:
    logits = torch.tensor([[0.0, 1.0]])
    for value, expected in ((0.1, 0.1), (-3, -3.0), (1e300, INF), (-1e300, -INF)):
        got = autodeco_ext.filter_logits(logits, top_k=1, filter_value=value)
        assert torch.equal(got, torch.tensor([[expected, 1.0]]))
    with pytest.raises(TypeError, match="filter_value must be a number, got Tensor"):
        autodeco_ext.filter_logits(logits, filter_value=torch.tensor(-1e4))


def test_out_may_not_share_memory_in_a_way_that_loses_rows(op_device: str) -> None:
    logits = rows()
    with pytest.raises(ValueError, match="out must not share memory between its rows, got strides"):
        autodeco_ext.filter_logits(logits, out=torch.empty(1, 777).expand(40, 777))
    # Each stride alone leads past a row, and yet rows (0, 1) and (1, 0) are the same memory.
    shared = torch.randn(3 * 777).as_strided((2, 2, 777), (777, 777, 1))
    for source in (torch.randn(2, 2, 777), shared):
        with pytest.raises(ValueError, match=r"got strides \[777, 777, 1\]"):
            autodeco_ext.filter_logits(source, out=shared)
    both = torch.randn(41, 777)
    with pytest.raises(ValueError, match="out must be logits itself or lie outside its memory"):
        autodeco_ext.filter_logits(both[:-1], out=both[1:])
    with pytest.raises(ValueError, match="out must not require grad"):
        autodeco_ext.filter_logits(logits, out=torch.empty(40, 777, requires_grad=True))


def test_writing_to_out_is_seen_by_autograd(device: torch.device) -> None:
    x = torch.zeros(2, 3, requires_grad=True, device=device)
    saved = x.exp()  # its backward needs its own values
    autodeco_ext.filter_logits(torch.ones(2, 3, device=device), out=saved.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_zero_rows_give_zero_rows(op_device: str) -> None:
    assert autodeco_ext.filter_logits(torch.zeros(0, 5), 0.7).shape == (0, 5)
    assert autodeco_ext.filter_logits(torch.zeros(2, 0, 5)).shape == (2, 0, 5)
    assert autodeco_ext.distribution_stats(torch.zeros(2, 0, 5)).shape == (2, 0, 4)

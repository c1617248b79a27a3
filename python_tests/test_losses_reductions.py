"""The losses of a batch: what counts, reductions, shapes, layouts, and rows on their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from loss_judge import (
    DTYPES,
    IGNORE,
    LossResults,
    assert_losses_exact,
    generator,
    keywords,
    random_arguments,
    run_losses,
)
from loss_oracle import MEGATRON, RELEASED, LossOptions
from torch import Tensor

import autodeco_ext
from autodeco_ext import reference

NAN = float("nan")


def assert_identical(got: LossResults, expected: LossResults) -> None:
    for name, value in got._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name


# What counts


def test_ignored_rows_are_not_read(backend: str) -> None:
    logits, temperature, top_p, labels = random_arguments("peaked", 6, 100, seed=9)
    ignored = torch.arange(6) % 3 == 1
    spoiled = [logits.clone(), temperature.clone(), top_p.clone()]
    for tensor in spoiled:
        tensor[ignored] = NAN
    for index in (IGNORE, 3):
        assert (labels[~ignored] != 3).all()
        got = run_losses(
            *spoiled, labels.masked_fill(ignored, index), with_logits=True, ignore_index=index
        )
        expected = run_losses(
            logits[~ignored],
            temperature[~ignored],
            top_p[~ignored],
            labels[~ignored],
            with_logits=True,
        )
        for value, wanted in zip(got, expected, strict=True):
            assert (value[ignored] == 0).all()
            assert torch.equal(value[~ignored], wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("nothing", ["ignored", "dropped", "empty"])
def test_nothing_to_count_is_a_differentiable_zero(
    backend: str, nothing: str, reduction: str
) -> None:
    rows = 0 if nothing == "empty" else 3
    logits = torch.arange(8.0).repeat(rows, 1).requires_grad_()
    temperature = torch.ones(rows, requires_grad=True)
    top_p = torch.full((rows,), 0.5, requires_grad=True)
    labels = torch.full((rows,), IGNORE if nothing == "ignored" else 7)
    drop = torch.zeros(rows) if nothing == "dropped" else None
    arguments = (logits, temperature, top_p, labels)
    named = {"drop_uniform": drop, "variant": "megatron", "reduction": reduction}
    losses = autodeco_ext.autodeco_loss(*arguments, **named)
    for value in (*losses, autodeco_ext.soft_top_p_loss(*arguments, **named)):
        assert value.shape == ((rows,) if reduction == "none" else ())
        assert (value == 0).all()
        gradients = torch.autograd.grad(
            value.sum(), (logits, temperature, top_p), retain_graph=True, materialize_grads=True
        )
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("options", [RELEASED, MEGATRON], ids=["released", "megatron"])
def test_easy_tokens_are_dropped_below_the_threshold_only(
    backend: str, options: LossOptions
) -> None:
    # The argmax is token 1, the lower of two equal ones.
    logits = torch.tensor([0.5, 2.0, 2.0, -1.0]).expand(6, -1)
    labels = torch.tensor([1, 1, 1, 2, 0, 1])
    drop = torch.tensor([0.0, 0.7499, 0.75, 0.0, 0.0, 0.99])
    half = torch.full((6,), 0.5)
    got = assert_losses_exact(
        logits, half, half, labels, options, drop_uniform=drop, easy_token_drop=0.75
    )
    dropped = torch.tensor([True, True, False, False, False, False])
    assert torch.equal(got.temperature_loss == 0, dropped)
    assert torch.equal(got.top_p_loss == 0, dropped & options.megatron)


def test_drop_uniform_is_drawn_from_the_torch_generator() -> None:
    logits = torch.tensor([0.0, 3.0]).expand(4000, -1)
    one, labels = torch.ones(4000), torch.ones(4000, dtype=torch.int64)

    def losses(**named) -> Tensor:
        arguments = (logits, one, one, labels)
        return autodeco_ext.autodeco_loss(*arguments, reduction="none", **named).temperature_loss

    torch.manual_seed(1)
    first = losses()
    torch.manual_seed(1)
    assert torch.equal(losses(), first)
    assert not torch.equal(losses(), first)
    assert (first == 0).double().mean() == pytest.approx(0.6, abs=0.04)
    before = torch.get_rng_state()
    assert (losses(easy_token_drop=0.0) > 0).all()
    assert torch.equal(torch.get_rng_state(), before)


# Reductions, shapes, layouts


@pytest.mark.parametrize("options", [RELEASED, MEGATRON], ids=["released", "megatron"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_are_those_of_the_reference(
    backend: str, reduction: str, options: LossOptions
) -> None:
    logits, temperature, top_p, labels = random_arguments("peaked", 24, 30, seed=10)
    labels[::5] = IGNORE
    shaped = [x.view(2, 12, *x.shape[1:]) for x in (logits, temperature, top_p, labels)]
    drop = torch.linspace(0, 1, 24).view(2, 12)
    named = {"drop_uniform": drop, "reduction": reduction, **keywords(options)}
    of_op, of_reference = (
        [x.to(dtype).clone().requires_grad_() for x in shaped[:3]]
        for dtype in (torch.float32, torch.float64)
    )
    got = autodeco_ext.autodeco_loss(*of_op, shaped[3], **named)
    expected = reference.autodeco_loss(*of_reference, shaped[3], **named)
    for value, wanted in zip(got, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-9)
    # An outside weighting of the tokens reaches each of them.
    weights = torch.rand(got.loss.shape, generator=generator(11))
    (got.loss * weights).sum().backward()
    (expected.loss * weights).sum().backward()
    for leaf, wanted in zip(of_op, of_reference, strict=True):
        assert leaf.grad.shape == leaf.shape
        largest = wanted.grad.abs().max()
        torch.testing.assert_close(leaf.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6 * largest)


def test_the_parts_sum_to_the_loss(backend: str) -> None:
    arguments = random_arguments("gaussian", 20, 50, seed=12)
    losses = autodeco_ext.autodeco_loss(*arguments, drop_uniform=torch.linspace(0, 1, 20))
    assert losses.loss == losses.temperature_loss + losses.top_p_loss
    alone = autodeco_ext.soft_top_p_loss(*arguments)
    assert torch.equal(alone, losses.top_p_loss)


def test_soft_top_p_loss_alone_has_the_gradients_of_that_part(backend: str) -> None:
    logits, *parameters, labels = random_arguments("gaussian", 20, 50, seed=13)
    gradients = []
    for op in (
        autodeco_ext.soft_top_p_loss,
        lambda *x: autodeco_ext.autodeco_loss(*x, easy_token_drop=0.0).top_p_loss,
    ):
        leaves = [x.clone().requires_grad_() for x in (logits, *parameters)]
        op(*leaves, labels).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for alone, part in zip(*gradients, strict=True):
        assert torch.equal(alone, part)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_single_row_needs_no_batch(backend: str, reduction: str) -> None:
    arguments = random_arguments("gaussian", 1, 50, seed=14)
    results = []
    for row in (arguments, [x[0] for x in arguments]):
        leaves = [x.clone().requires_grad_() for x in row[:3]]
        losses = autodeco_ext.autodeco_loss(
            *leaves, row[3], easy_token_drop=0.0, reduction=reduction
        )
        results.append([*losses, *torch.autograd.grad(losses.loss.sum(), leaves)])
    assert all(torch.equal(one, other.view_as(one)) for one, other in zip(*results, strict=True))
    assert all(loss.shape == () for loss in results[1][:3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtypes_of_what_they_belong_to(backend: str, dtype: torch.dtype) -> None:
    got = run_losses(*random_arguments("gaussian", 4, 50, dtype), with_logits=True)
    assert got.top_p_loss_d_logits.dtype == dtype
    assert {value.dtype for value in got[:5]} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [17, 1000, 20_000])
def test_rows_do_not_affect_each_other(backend: str, dtype: torch.dtype, vocab: int) -> None:
    arguments = random_arguments("peaked", 7, vocab, dtype, seed=15)
    together = run_losses(*arguments, with_logits=True)
    turned = run_losses(*(x.roll(3, 0) for x in arguments), with_logits=True)
    assert_identical(turned, LossResults(*(x.roll(3, 0) for x in together)))
    for i in range(7):
        alone = run_losses(*(x[i : i + 1].clone() for x in arguments), with_logits=True)
        assert_identical(alone, LossResults(*(x[i : i + 1] for x in together)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_alignment_do_not_matter(backend: str, dtype: torch.dtype) -> None:
    logits, *others = random_arguments("gaussian", 6, 1003, dtype, seed=16)
    expected = run_losses(logits, *others, with_logits=True)
    for left in (1, 3, 8):
        around = torch.full((6, 1003 + 20), NAN, dtype=dtype)
        around[:, left : left + 1003] = logits
        assert_identical(
            run_losses(around[:, left : left + 1003], *others, with_logits=True), expected
        )
    between = torch.full((12, 1003), NAN, dtype=dtype)
    between[::2] = logits
    assert_identical(run_losses(between[::2], *others, with_logits=True), expected)
    one = logits[:1].expand(6, -1)  # one row read six times
    got = run_losses(one, *others, with_logits=True)
    assert_identical(got, run_losses(one.clone(), *others, with_logits=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_matter(
    cpu_backend: str, dtype: torch.dtype, set_num_threads: Callable[[int], None]
) -> None:
    arguments = random_arguments("peaked", 33, 4000, dtype, seed=17)
    results = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        results.append(run_losses(*arguments, with_logits=True))
    for other in results[1:]:
        assert_identical(other, results[0])

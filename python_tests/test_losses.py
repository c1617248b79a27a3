"""`autodeco_loss`, `soft_top_p_loss`: losses and gradients of each row against the exact ones."""

from __future__ import annotations

import pytest
import torch
from loss_judge import (
    DTYPES,
    assert_losses_exact,
    generator,
    of_each_label,
    random_arguments,
    run_losses,
)
from loss_oracle import MEGATRON, RELEASED, LossOptions, SortedRow, exact_soft_top_p_loss
from oracle import ROW_KINDS, make_rows

import autodeco_ext

INF = float("inf")
ALL_OPTIONS = {
    "exclusive": RELEASED._replace(exclusive=True),
    "megatron": MEGATRON,
    "exclusive megatron": MEGATRON._replace(exclusive=True, steepness=7.3),
    "large eps": RELEASED._replace(mass_eps=1e-3, probability_eps=1e-2),
    "no eps": RELEASED._replace(mass_eps=0.0, probability_eps=0.0),
    "not steep": RELEASED._replace(steepness=0.0),
    "steep": RELEASED._replace(steepness=1e4),
    "clamped": RELEASED._replace(temperature_clamp=0.5, top_p_temperature_clamp=0.4),
}


# Values


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients_are_exact(backend: str, kind: str, dtype: torch.dtype) -> None:
    for vocab in (1, 2, 17, 1000):
        arguments = random_arguments(kind, 6, vocab, dtype, seed=vocab)
        assert_losses_exact(*arguments, with_logits=True)


@pytest.mark.parametrize("kind", ["peaked", "gaussian", "masked"])
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=ALL_OPTIONS)
def test_every_option_is_exact(backend: str, options: LossOptions, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        arguments = random_arguments(kind, 6, 333, dtype, seed=1)
        assert_losses_exact(*arguments, options, with_logits=True)


@pytest.mark.parametrize("cumulative", ["inclusive", "exclusive"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_p_pulls_at_labels_beyond_the_cut_and_pushes_at_those_before(
    backend: str, dtype: torch.dtype, cumulative: str
) -> None:
    options = RELEASED._replace(exclusive=cumulative == "exclusive")
    row = make_rows("gaussian", 1, 40, torch.float32, generator(2)).to(dtype)
    for top_p in (0.05, 0.7, 0.99):
        got = assert_losses_exact(*of_each_label(row, 0.8, top_p), options, with_logits=True)
        order = (row[0].float() + 0.0).argsort(descending=True, stable=True)
        probs = (row[0].double() / torch.tensor(0.8).double()).softmax(-1)[order]
        mass = probs.cumsum(-1) - (probs if options.exclusive else 0)
        in_tail = mass > torch.tensor(top_p).double()
        signs = got.top_p_loss_d_top_p[order] < 0  # more top_p lowers the loss of the tail
        assert torch.equal(signs, in_tail)
        assert 0 <= int(in_tail.sum()) < 40 or not options.exclusive


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_that_ends_exactly_at_top_p_is_before_the_cut(
    backend: str, dtype: torch.dtype
) -> None:
    # Masses of 1/8: exact in any arithmetic, so there is no slack to hide behind.
    for vocab in (8, 1024):
        row = torch.zeros(1, vocab, dtype=dtype)
        for top_p in (0.25, 0.5, 0.875):
            got = run_losses(*of_each_label(row, 1.0, top_p))
            ends = (torch.arange(vocab) + 1) / vocab
            assert torch.equal(got.top_p_loss_d_top_p < 0, ends > top_p)
            exclusive = run_losses(
                *of_each_label(row, 1.0, top_p), RELEASED._replace(exclusive=True)
            )
            assert torch.equal(exclusive.top_p_loss_d_top_p < 0, ends - 1 / vocab > top_p)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_come_in_index_order(backend: str, dtype: torch.dtype) -> None:
    row = torch.tensor([[1.0, 2.0, -0.0, 2.0, 0.0, 1.0, -0.0]], dtype=dtype)
    got = assert_losses_exact(*of_each_label(row, 0.9, 0.3), with_logits=True)
    for tied in ([1, 3], [0, 5], [2, 4, 6]):
        losses = got.top_p_loss[tied]
        assert (losses.diff() > 0).all(), losses  # the later one has more mass before it
    for kind in ("tied", "two_valued", "flat"):
        row = make_rows(kind, 1, 60, torch.float32, generator(3)).to(dtype)
        assert_losses_exact(*of_each_label(row, 1.1, 0.6), with_logits=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_top_p_is_exact(backend: str, dtype: torch.dtype) -> None:
    extremes = [0.0, 1e-45, 1e-30, 1e-6, 0.999, 0.999999, 1 - 2**-23, 1 - 2**-24, 1.0]
    top_p = torch.tensor(extremes)
    for options in (RELEASED, RELEASED._replace(exclusive=True), MEGATRON):
        for kind in ("peaked", "flat"):
            row = make_rows(kind, 1, 500, dtype, generator(4))
            order = SortedRow(row[0]).order
            for rank in (0, 1, 60, 499):
                arguments = (row.expand(9, -1), torch.full((9,), 0.7), top_p, order[[rank] * 9])
                got = assert_losses_exact(*arguments, options, with_logits=True)
                assert got.top_p_loss_d_top_p[-1] == 0, "a top_p of 1 cuts nothing"


def test_a_top_p_around_the_largest_probability_is_exact(backend: str) -> None:
    row = torch.tensor([[3.0, 1.0, 2.0, -4.0]])
    largest = float(row.double().softmax(-1).max())
    step = torch.arange(-3, 4) * 2.0**-20
    for offset in step.tolist():
        for options in (RELEASED, RELEASED._replace(exclusive=True)):
            arguments = of_each_label(row, 1.0, largest + offset)
            assert_losses_exact(*arguments, options, with_logits=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_temperature_is_exact(backend: str, dtype: torch.dtype) -> None:
    temperature = torch.tensor(
        [0.0, 1e-45, 1e-30, 1e-9, 1e-8, 2e-8, 1e-3, 0.0099, 0.01, 0.0101, 0.05, 2, 30, 1e30]
    )
    rows = len(temperature)
    for kind in ("peaked", "gaussian", "two_valued", "flat"):
        logits, _, top_p, labels = random_arguments(kind, rows, 200, dtype, seed=5)
        assert_losses_exact(logits, temperature, top_p, labels, with_logits=True)
        close = (logits.float() * 2**-18).to(dtype)  # so that small temperatures tell them apart
        assert_losses_exact(close, temperature, top_p, labels, with_logits=True)
        normal = temperature >= torch.finfo(torch.float32).smallest_normal
        unclamped = (x[normal] for x in (close, temperature, top_p, labels))
        assert_losses_exact(*unclamped, MEGATRON, with_logits=True)


def test_a_clamped_temperature_has_no_gradient_and_one_at_the_clamp_has(backend: str) -> None:
    logits = 0.01 * make_rows("gaussian", 1, 30, torch.float32, generator(6)).expand(3, -1)
    temperature = torch.tensor([0.0099, 0.01, 0.0101])
    top_p, labels = torch.full((3,), 0.5), torch.full((3,), 4)
    got = run_losses(logits, temperature, top_p, labels)
    assert (got.temperature_loss_d_temperature != 0).tolist() == [False, True, True]
    assert (got.top_p_loss_d_temperature != 0).all()
    assert got.temperature_loss[0] == got.temperature_loss[1]
    assert got.top_p_loss[0] != got.top_p_loss[1]
    clamped = run_losses(
        logits, temperature, top_p, labels, RELEASED._replace(top_p_temperature_clamp=0.01)
    )
    assert (clamped.top_p_loss_d_temperature != 0).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_far_apart_give_no_nan(backend: str, dtype: torch.dtype) -> None:
    largest = 1e4 if dtype == torch.float16 else 1e30
    row = torch.tensor([[largest, -largest, 0.0, -INF, largest * 0.999]], dtype=dtype)
    for temperature in (1e-30, 0.01, 2.0):
        for options in (RELEASED, MEGATRON):
            for top_p in (0.0, 0.5, 1.0):
                arguments = of_each_label(row, temperature, top_p)
                got = assert_losses_exact(*arguments, options, with_logits=True)
                assert not any(value.isnan().any() for value in got)


# Masked tokens


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_tokens_are_as_if_they_were_not_there(backend: str, dtype: torch.dtype) -> None:
    logits, temperature, top_p, _ = random_arguments("gaussian", 5, 99, dtype, seed=7)
    hidden = torch.rand(99, generator=generator(8)) < 0.5
    labels = (~hidden).nonzero()[:5, 0]
    masked = logits.masked_fill(hidden, -INF)
    got = assert_losses_exact(masked, temperature, top_p, labels, with_logits=True)
    without = logits[:, ~hidden].clone()
    places = hidden.logical_not().cumsum(0)[labels] - 1
    assert_losses_exact(without, temperature, top_p, places, with_logits=True)
    for gradient in (got.temperature_loss_d_logits, got.top_p_loss_d_logits):
        assert (gradient[:, hidden] == 0).all()
        assert (gradient[:, ~hidden] != 0).any()


def test_a_masked_label_costs_nothing(backend: str) -> None:
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, -INF, 1.0]])
    labels, half = torch.tensor([1, 2]), torch.full((2,), 0.5)
    for options in (RELEASED, MEGATRON, RELEASED._replace(probability_eps=0.0)):
        got = run_losses(logits, half, half, labels, options, with_logits=True)
        for value in got:
            assert (value[0] == 0).all()
            assert (value[1] != 0).any()


# Limits


def test_the_same_row_has_the_same_losses_in_every_dtype_it_fits(backend: str) -> None:
    logits, *others = random_arguments("tied", 6, 500, torch.bfloat16, seed=18)
    for dtype in DTYPES:
        assert torch.equal(logits.to(dtype).float(), logits.float())
        assert_losses_exact(logits.to(dtype), *others, with_logits=True)


def test_a_small_steepness_is_the_cross_entropy_and_a_large_one_the_hard_cut(backend: str) -> None:
    row = make_rows("gaussian", 1, 40, torch.float32, generator(19))
    arguments = of_each_label(row, 0.8, 0.7)
    none = LossOptions(steepness=0.0, mass_eps=0.0, probability_eps=0.0)
    got = assert_losses_exact(*arguments, none, with_logits=True)
    torch.testing.assert_close(got.top_p_loss, got.temperature_loss)
    assert (got.top_p_loss_d_top_p == 0).all()
    hard = run_losses(*arguments, RELEASED._replace(steepness=1e9, exclusive=True))
    kept = autodeco_ext.filter_logits(row, 0.8, 0.7)[0]
    weight = row[0].softmax(-1)
    expected = weight * -kept.log_softmax(-1)
    torch.testing.assert_close(hard.top_p_loss[kept > -INF], expected[kept > -INF])
    exact = exact_soft_top_p_loss(SortedRow(row[0]), 0.8, 0.7, int((kept == -INF).nonzero()[0]))
    assert exact.loss < hard.top_p_loss[kept == -INF].max()

"""The judge of the loss ops is right itself: it is what autograd says of the definition."""

from __future__ import annotations

import math

import pytest
import torch
from loss_oracle import (
    MEGATRON,
    RELEASED,
    ExactLoss,
    LossOptions,
    SortedRow,
    acceptable_soft_top_p_losses,
    as_float32,
    error_share,
    exact_soft_top_p_loss,
    exact_temperature_loss,
)
from oracle import ROW_KINDS, make_rows

from autodeco_ext import reference

INF = float("inf")
PROBS = (0.5, 0.3, 0.2)
ALL_OPTIONS = {
    "released": RELEASED,
    "megatron": MEGATRON,
    "exclusive": RELEASED._replace(exclusive=True),
    "exclusive megatron": MEGATRON._replace(exclusive=True, steepness=7.3),
    "large eps": RELEASED._replace(mass_eps=1e-3, probability_eps=1e-2),
    "no eps": RELEASED._replace(mass_eps=0.0, probability_eps=0.0),
    "not steep": RELEASED._replace(steepness=0.0),
    "clamped": RELEASED._replace(temperature_clamp=0.5, top_p_temperature_clamp=0.4),
}


def by_autograd(logits, temperature, top_p, label: int, options: LossOptions):
    """Both losses of the reference in float64 and their gradients in logits, T and P."""
    leaves = [
        x.double().clone().requires_grad_() for x in (logits[None], temperature[None], top_p[None])
    ]
    losses = reference.autodeco_loss(
        *leaves,
        torch.tensor([label]),
        variant="megatron" if options.megatron else "released",
        cumulative="exclusive" if options.exclusive else "inclusive",
        steepness=options.steepness,
        temperature_clamp=as_float32(options.temperature_clamp),
        top_p_temperature_clamp=as_float32(options.top_p_temperature_clamp),
        mass_eps=options.mass_eps,
        probability_eps=options.probability_eps,
    )
    for part in (losses.temperature_loss, losses.top_p_loss):
        gradients = torch.autograd.grad(part, leaves, retain_graph=True, materialize_grads=True)
        yield part.item(), *(gradient[0] for gradient in gradients)


def assert_agrees(exact: ExactLoss, by_autograd) -> None:
    """To float64 rounding, absolutely: the reference subtracts what the oracle carries along."""
    loss, d_logits, d_temperature, d_top_p = by_autograd
    assert exact.loss == pytest.approx(loss, rel=1e-11, abs=1e-14)
    assert exact.d_top_p == pytest.approx(d_top_p.item(), rel=1e-9, abs=1e-13)
    allowed = 1e-10 * exact.d_temperature_scale + 1e-12
    assert abs(exact.d_temperature - d_temperature.item()) <= allowed
    assert ((exact.d_logits - d_logits).abs() <= 1e-10 * exact.d_logits_scale + 1e-12).all()


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=ALL_OPTIONS)
def test_the_oracle_is_float64_autograd_of_the_reference(options: LossOptions, kind: str) -> None:
    random = torch.Generator().manual_seed(ROW_KINDS.index(kind))
    for number in range(24):
        vocab = (1, 2, 3, 50, 333)[number % 5]
        logits = make_rows(kind, 1, vocab, torch.float32, random)[0]
        temperature, top_p = (
            0.3 + 1.7 * torch.rand(1, generator=random),
            torch.rand(1, generator=random),
        )
        label = int(torch.randint(vocab, (1,), generator=random))
        row, t, p = SortedRow(logits), temperature[0], top_p[0]
        of_temperature, of_top_p = by_autograd(logits, t, p, label, options)
        assert_agrees(exact_temperature_loss(row, float(t), label, options), of_temperature)
        assert_agrees(exact_soft_top_p_loss(row, float(t), float(p), label, options), of_top_p)


def test_small_losses_keep_their_digits() -> None:
    # q = 1 - 1e-12: 1 - q has four digits left in float64, the remainder has all of them.
    row = SortedRow(torch.tensor([0.0, -27.631021115928547, -INF], dtype=torch.float64))
    options = RELEASED._replace(mass_eps=0.0, probability_eps=0.0)
    assert exact_soft_top_p_loss(row, 1.0, 1.0, 0, options).loss == pytest.approx(1e-12, rel=1e-11)
    assert exact_temperature_loss(row, 1.0, 0).loss == pytest.approx(1e-12, rel=1e-11)
    assert exact_temperature_loss(row, 1.0, 0).d_temperature == pytest.approx(
        27.631021115928547e-12, rel=1e-11
    )


def test_a_top_p_of_one_has_no_tail_whatever_the_sums_round_to() -> None:
    for vocab in (3, 7, 10, 49, 1000):
        row = SortedRow(make_rows("peaked", 1, vocab, torch.float32, torch.Generator())[0])
        last = int(row.order[-1])
        assert exact_soft_top_p_loss(row, 0.7, 1.0, last).d_top_p == 0


def test_a_token_that_ends_exactly_at_top_p_is_in_the_head() -> None:
    row = SortedRow(torch.zeros(4))
    # Head: tokens 0 and 1. One float further down only token 0.
    at, below = (
        exact_soft_top_p_loss(row, 1.0, top_p, 1) for top_p in (0.5, as_float32(0.49999997))
    )
    assert at.d_top_p > 0 > below.d_top_p
    assert at.loss == pytest.approx(below.loss, rel=1e-5)


def test_a_masked_label_costs_nothing() -> None:
    row = SortedRow(torch.tensor([0.0, -INF, 1.0]))
    for exact in (exact_temperature_loss(row, 1.0, 1), exact_soft_top_p_loss(row, 1.0, 0.5, 1)):
        assert exact.loss == exact.d_temperature == exact.d_top_p == 0
        assert (exact.d_logits == 0).all()


def test_errors_are_judged_by_the_table() -> None:
    row = SortedRow(torch.tensor(PROBS).log())
    acceptable = acceptable_soft_top_p_losses(row, 1.0, 0.65, 1)
    exact = acceptable[0]
    for name, relative in (("loss", 1e-5), ("d_top_p", 1e-4), ("d_temperature", 1e-4)):
        value = getattr(exact, name)
        assert error_share(value, name, acceptable) == 0
        assert error_share(value * (1 + 3 * relative), name, acceptable) > 1
        assert error_share(math.nan, name, acceptable) == INF
    off = exact.d_logits.clone()
    off[2] += 1e-2 * off[2].abs()
    assert (error_share(off, "d_logits", acceptable) > 1).tolist() == [False, False, True]
    # One float32 step of top_p is within the slack; the sign of dP on the cut may be either.
    acceptable = acceptable_soft_top_p_losses(row, 1.0, 0.8, 1)
    signs = {value.d_top_p > 0 for value in acceptable}
    assert signs == {True, False}
    assert all(error_share(value.d_top_p, "d_top_p", acceptable) <= 1 for value in acceptable)

"""The gradient of the logits at a language model's vocabulary, against the exact sorted form."""

from __future__ import annotations

import pytest
import torch
from loss_judge import run_losses, worst_shares
from loss_oracle import NEGLIGIBLE, LossOptions, acceptable_soft_top_p_losses
from losses_accuracy import DISTRIBUTIONS, cases

VOCAB = 151936
LABELS = (0, 3, 6)  # of a case: the argmax, the crossing token, one that was drawn
# How wrong dL/dlogits of single tokens may be in rows of many (nearly) equal ones, as a multiple of
# the tolerance: docs/architecture.md, limits of the training losses.
MISSED = {"equal": 2.0, "nearly equal": 2.0, "a twentieth raised": 40.0, "whole numbers": 10.0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_result_is_exact_with_a_large_vocabulary(
    distribution: str, dtype: torch.dtype
) -> None:
    worst = torch.zeros(7, dtype=torch.float64)
    for case in cases(VOCAB, dtype, every=5, only=distribution):
        rows = [values[list(LABELS)] for values in case[2:]]
        got = run_losses(*rows, with_logits=True)
        worst = torch.maximum(worst, worst_shares(*rows, got).amax(0))
    limit = torch.ones_like(worst)
    limit[-1] = MISSED.get(distribution, 1.0)
    assert (worst <= limit).all(), dict(zip(got._fields, worst.tolist(), strict=True))


# The same at a steepness that the losses walk token by token and dL/dlogits does not: how wrong
# single tokens may be as a multiple of the tolerance, and all of them as a share of the norm.
STEEP_MISSED = {300.0: (200.0, 2e-4), 1e4: (5000.0, 5e-3)}
STEEP_LABELS = (0, 2, 3)  # in the head but for the crossing token: others have no gradient left


@pytest.mark.slow
@pytest.mark.parametrize("steepness", STEEP_MISSED)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_steep_decay_is_exact_but_for_single_logits(distribution: str, steepness: float) -> None:
    most_missed, most_of_norm = STEEP_MISSED[steepness]
    limit = torch.ones(7, dtype=torch.float64)
    limit[-1] = most_missed
    for number, case in enumerate(cases(VOCAB, torch.float32, every=7, only=distribution)):
        options = LossOptions(steepness=steepness, exclusive=number % 2 == 1)
        rows = [values[list(STEEP_LABELS)] for values in case[2:]]
        got = run_losses(*rows, options, with_logits=True)
        worst = worst_shares(*rows, got, options).amax(0)
        assert (worst <= limit).all(), dict(zip(got._fields, worst.tolist(), strict=True))
        for gradient, label in zip(got.top_p_loss_d_logits.double(), rows[3].tolist(), strict=True):
            arguments = (case.row, float(rows[1][0]), float(rows[2][0]), label, options)
            missed = min(
                float((gradient - exact.d_logits).norm() / (exact.d_logits.norm() + NEGLIGIBLE))
                for exact in acceptable_soft_top_p_losses(*arguments)
            )
            assert missed <= most_of_norm

"""The gradient of the logits at a language model's vocabulary, against the exact sorted form."""

from __future__ import annotations

import pytest
import torch
from loss_judge import run_losses, worst_shares
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

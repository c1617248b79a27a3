"""The floor: one read, for the maximum (CUDA), or it and the sum of exponentials (CPU)."""

from __future__ import annotations

import torch

import autodeco_ext  # noqa: F401  (registers the op)
from bench.providers import Provider


def _run(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.ops.autodeco_ext.floor(logits)


def _is_right(result: torch.Tensor, logits: torch.Tensor, *_: torch.Tensor) -> bool:
    if logits.is_cuda:  # maxima of parts of the row
        return torch.equal(result.amax(-1), logits.amax(-1).float())
    maximum = logits.amax(-1).float()
    total = (logits.double() - maximum.double()[:, None]).exp().sum(-1)
    return torch.equal(result[:, 0], maximum) and bool(
        ((result[:, 1] - total).abs() <= 1e-5 * total).all()
    )


PROVIDER = Provider(_run, _is_right)

"""Fake kernels: what torch.compile and opcheck need to know about the shapes of our ops.

Importing this module loads the extension, which registers the schemas and the CPU kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from autodeco_ext import _load  # noqa: F401  (the schemas must exist before their fakes)

_NUM_STATS = 4


def _sample_shapes(logits: torch.Tensor, num_samples: int | None) -> tuple[list[int], list[int]]:
    rows = list(logits.shape[:-1])
    return rows, rows if num_samples is None else [*rows, num_samples]


@torch.library.register_fake("autodeco_ext::sample")
def _(logits: torch.Tensor, *parameters: Any) -> torch.Tensor:
    _, per_sample = _sample_shapes(logits, parameters[-2])
    return logits.new_empty(per_sample, dtype=torch.int64)


@torch.library.register_fake("autodeco_ext::sample_with_info")
def _(logits: torch.Tensor, *parameters: Any) -> tuple[torch.Tensor, ...]:
    rows, per_sample = _sample_shapes(logits, parameters[-2])
    return (
        logits.new_empty(per_sample, dtype=torch.int64),
        logits.new_empty(per_sample, dtype=torch.float32),
        logits.new_empty(per_sample, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.bool),
    )


@torch.library.register_fake("autodeco_ext::filter_logits_out")
def _(logits: torch.Tensor, *parameters: Any) -> None:
    return None


@torch.library.register_fake("autodeco_ext::distribution_stats")
def _(
    logits: torch.Tensor, temperature: torch.Tensor | None, temperature_value: float
) -> torch.Tensor:
    return logits.new_empty([*logits.shape[:-1], _NUM_STATS], dtype=torch.float32)

"""sample of a mixed batch in one call, against one call for each kind of its rows."""

from __future__ import annotations

import torch

import autodeco_ext
from bench.cases.sample import SEED, is_draw_of_seed, is_right  # noqa: F401  (the same check)
from bench.providers import Missing, Provider, floor
from bench.rows import MIXED, MIXED_KINDS

DISTRIBUTIONS = (MIXED,)


def _at_once(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return autodeco_ext.sample(logits, t, p, seed=SEED)


def _kind_by_kind(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Rows of a kind lie MIXED_KINDS apart and are read where they are."""
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for first in range(min(MIXED_KINDS, len(logits))):
        kind = slice(first, None, MIXED_KINDS)
        tokens[kind] = _at_once(logits[kind], t[kind], p[kind])
    return tokens


def providers(device: str) -> dict[str, Provider | Missing]:
    return {
        "autodeco_ext": Provider(_at_once, is_draw_of_seed),
        "kind by kind": Provider(_kind_by_kind),
        "floor": floor.PROVIDER,
    }

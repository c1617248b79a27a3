"""kept_indices(logits, temperature, top_p), with a capacity: nothing waits for the device."""

from __future__ import annotations

import torch

import autodeco_ext
from bench.cases.kept_bounds import kept_bounds
from bench.providers import Missing, Provider, floor, torch_sort

Kept = tuple[torch.Tensor, torch.Tensor]


def _ours(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> Kept:
    return autodeco_ext.kept_indices(logits, t, p, capacity=logits.numel())


def _torch(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> Kept:
    kept = torch_sort.filter_logits(logits, t, p) > -float("inf")
    offsets = torch.nn.functional.pad(kept.sum(-1).cumsum(0), (1, 0))
    return offsets, kept.nonzero()[:, 1]


def providers(device: str) -> dict[str, Provider | Missing]:
    return {
        "autodeco_ext": Provider(_ours),
        "floor": floor.PROVIDER,
        "torch sort": Provider(_torch, waits=True),  # nonzero asks for the number of ids
    }


def is_right(result: Kept, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """Ids ascend in every row, and are the nucleus but for tokens within rounding of the cut."""
    must_be_kept, may_be_kept = kept_bounds(logits, t, p)
    offsets, ids = result[0], result[1][: int(result[0][-1])].long()
    rows = torch.repeat_interleave(
        torch.arange(len(logits), device=logits.device), offsets.diff(), output_size=len(ids)
    )
    kept = torch.zeros_like(must_be_kept)
    kept[rows, ids] = True
    place = rows * logits.shape[-1] + ids
    ascending = bool((place.diff() > 0).all())
    return ascending and bool((must_be_kept <= kept).all() and (kept <= may_be_kept).all())

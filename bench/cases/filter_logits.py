"""filter_logits(logits, temperature, top_p)."""

from __future__ import annotations

import torch

import autodeco_ext
from bench.cases.kept_bounds import filtered_is_right, kept_bounds
from bench.providers import Missing, Provider, floor, hugging_face, torch_sort


def providers(device: str) -> dict[str, Provider | Missing]:
    shared = {
        "autodeco_ext": Provider(lambda logits, t, p: autodeco_ext.filter_logits(logits, t, p)),
        "floor": floor.PROVIDER,
        "torch sort": torch_sort.FILTER_LOGITS,
        "torch sort compiled": torch_sort.FILTER_LOGITS_COMPILED,
        "hugging face": hugging_face.FILTER_LOGITS,
    }
    from bench.providers import vllm

    name = "vllm triton" if device == "cuda" else "vllm"
    return {**shared, name: vllm.filter_logits(device)}


def is_right(
    filtered: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
) -> bool:
    """The kept set is right but for tokens within rounding of the cut; kept logits are l / T."""
    must_be_kept, may_be_kept = kept_bounds(logits, t, p)
    return filtered_is_right(filtered, must_be_kept, may_be_kept, logits, t)

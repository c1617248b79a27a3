"""filter_logits(logits, temperature, top_p)."""

from __future__ import annotations

import torch

import autodeco_ext
from autodeco_ext import reference
from bench.cases import hugging_face, torch_sort

PROVIDERS = {
    "autodeco_ext": lambda logits, t, p: autodeco_ext.filter_logits(logits, t, p),
    "torch sort": torch_sort.filter_logits,
    "hugging face": hugging_face.filter_logits,
}


def is_right(
    filtered: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
) -> bool:
    """The kept set is the nucleus of P - 1e-5 at least and of P + 1e-5 at most."""
    kept = filtered > -float("inf")
    least = reference.kept_mask(logits, t, p - 1e-5)
    most = reference.kept_mask(logits, t, (p + 1e-5).clamp(max=1.0))
    return bool((least <= kept).all() and (kept <= most).all())


UNCHECKED = {"hugging face"}  # as in sample.py

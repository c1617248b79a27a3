"""sample(logits, temperature, top_p)."""

from __future__ import annotations

import torch

import autodeco_ext
from autodeco_ext import reference
from bench.cases import hugging_face, torch_sort

PROVIDERS = {
    "autodeco_ext": lambda logits, t, p: autodeco_ext.sample(logits, t, p),
    "torch sort": torch_sort.sample,
    "hugging face": hugging_face.sample,
}


def is_right(tokens: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """Every token lies in the nucleus, with room for rounding at the cut."""
    kept = reference.kept_mask(logits, t, (p + 1e-5).clamp(max=1.0))
    return tokens.shape == p.shape and bool(kept.gather(-1, tokens[:, None]).all())


# Hugging Face draws with the batch's mean parameters, so its tokens are not checked against rows'.
UNCHECKED = {"hugging face"}

"""One module per op: its providers, and the check each must pass before it is timed.

A case is a module with

    providers(device) -> dict[str, Provider | Missing]    device is "cpu" or "cuda"
    is_right(result, logits, temperature, top_p) -> bool

and its name is that of the op. Providers and checks that need more than logits, T and P get it from

    arguments(logits, temperature, top_p) -> tuple        default: these three

A case that does not know every distribution but "mixed" says which it knows; the others are left
out.

    DISTRIBUTIONS

and a case without logits defines, in the place of `arguments`,

    inputs(distribution, count, rows, vocab, dtype, device) -> (rounds, checked)

where rounds are the arguments of every round, and checked those that the check is made with.

To add a case, write the module and name it in `NAMES`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from bench.rows import MIXED

NAMES = (
    "sample",
    "mixed_sample",
    "filter_logits",
    "distribution_stats",
    "kept_indices",
    "decode_step",
    "autodeco_loss",
    "linear_autodeco_loss",
    "head_training_step",
)
OURS = "autodeco_ext"  # the provider that others are compared with
FLOOR = "floor"


def case(op: str) -> ModuleType:
    """The module of an op; imported late, because peers take seconds to import."""
    return importlib.import_module(f"bench.cases.{op}")


def has_distribution(op: str, distribution: str) -> bool:
    known = getattr(case(op), "DISTRIBUTIONS", None)
    return distribution != MIXED if known is None else distribution in known


def arguments(
    op: str, logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What the providers of an op are called with for a batch."""
    own = getattr(case(op), "arguments", None)
    return own(logits, temperature, top_p) if own else (logits, temperature, top_p)

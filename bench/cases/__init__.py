"""One module per op: its providers, and the check each must pass before it is timed.

A case is a module with

    providers(device) -> dict[str, Provider | Missing]    device is "cpu" or "cuda"
    is_right(result, logits, temperature, top_p) -> bool

and its name is that of the op. To add one, write the module and name it in `NAMES`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = ("sample", "filter_logits", "distribution_stats", "kept_indices", "decode_step")
OURS = "autodeco_ext"  # the provider that others are compared with
FLOOR = "floor"


def case(op: str) -> ModuleType:
    """The module of an op; imported late, because peers take seconds to import."""
    return importlib.import_module(f"bench.cases.{op}")

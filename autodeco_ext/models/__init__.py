"""The heads, their configuration, and the model that carries them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autodeco_ext.models.configuration import AutoDecoConfig
from autodeco_ext.models.heads import AutoDecoHeads, HeadOutput

if TYPE_CHECKING:
    from autodeco_ext.models.modeling import AutoDecoModelForCausalLM

__all__ = ["AutoDecoConfig", "AutoDecoHeads", "AutoDecoModelForCausalLM", "HeadOutput"]


def __getattr__(name: str) -> Any:
    # Loaded on use: the model brings the generation loop along, which the heads do not need.
    if name == "AutoDecoModelForCausalLM":
        return importlib.import_module("autodeco_ext.models.modeling").AutoDecoModelForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""autodeco_ext: fused sampling with per-row parameters, and heads that predict them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autodeco_ext import reference
from autodeco_ext._load import build_info, cpu_isa, set_cpu_isa, supported_cpu_isas
from autodeco_ext._version import __version__
from autodeco_ext.decode import DecodeStep, decode_step
from autodeco_ext.losses import AutoDecoLoss, autodeco_loss, soft_top_p_loss
from autodeco_ext.ops import (
    KeptIndices,
    SampleOutput,
    distribution_stats,
    filter_logits,
    kept_indices,
    sample,
)

if TYPE_CHECKING:
    from autodeco_ext.generation import (
        AutoDecoLogitsProcessor,
        DecodingTrace,
        SamplingLogitsProcessor,
    )
    from autodeco_ext.linear_loss import linear_autodeco_loss
    from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads, AutoDecoModelForCausalLM

# These need transformers or torch's compiler, whose import takes seconds: they are loaded when
# first used.
_LAZY = {
    "AutoDecoConfig": "autodeco_ext.models",
    "AutoDecoHeads": "autodeco_ext.models",
    "AutoDecoModelForCausalLM": "autodeco_ext.models",
    "AutoDecoLogitsProcessor": "autodeco_ext.generation",
    "DecodingTrace": "autodeco_ext.generation",
    "SamplingLogitsProcessor": "autodeco_ext.generation",
    "linear_autodeco_loss": "autodeco_ext.linear_loss",
}

__all__ = [
    "AutoDecoConfig",
    "AutoDecoHeads",
    "AutoDecoLogitsProcessor",
    "AutoDecoLoss",
    "AutoDecoModelForCausalLM",
    "DecodeStep",
    "DecodingTrace",
    "KeptIndices",
    "SampleOutput",
    "SamplingLogitsProcessor",
    "__version__",
    "autodeco_loss",
    "build_info",
    "cpu_isa",
    "decode_step",
    "distribution_stats",
    "filter_logits",
    "kept_indices",
    "linear_autodeco_loss",
    "reference",
    "sample",
    "set_cpu_isa",
    "soft_top_p_loss",
    "supported_cpu_isas",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Decoding inside Hugging Face generate: logits processors and decoding traces."""

from __future__ import annotations

from autodeco_ext.generation.heads_processor import AutoDecoLogitsProcessor
from autodeco_ext.generation.sampling_processor import SamplingLogitsProcessor
from autodeco_ext.generation.trace import AutoDecoGenerateOutput, DecodingTrace

__all__ = [
    "AutoDecoGenerateOutput",
    "AutoDecoLogitsProcessor",
    "DecodingTrace",
    "SamplingLogitsProcessor",
]

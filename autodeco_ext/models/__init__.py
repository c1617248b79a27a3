"""The heads, their configuration, and the model that carries them.

Importing this package registers them with the Auto classes of transformers.
"""

from __future__ import annotations

from autodeco_ext.models.configuration import AutoDecoConfig
from autodeco_ext.models.heads import AutoDecoHeads, HeadOutput
from autodeco_ext.models.modeling import AutoDecoModelForCausalLM

__all__ = ["AutoDecoConfig", "AutoDecoHeads", "AutoDecoModelForCausalLM", "HeadOutput"]

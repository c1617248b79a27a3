"""What from_base and from_pretrained load besides head tensors: the base model and config.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from autodeco_ext.models.checkpoint import LOADER
from autodeco_ext.models.configuration import AutoDecoConfig
from autodeco_ext.models.forward import HeadsForwardMixin
from autodeco_ext.models.heads import AutoDecoHeads

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_HEAD_OPTIONS = (
    "enable_temperature_head",
    "enable_top_p_head",
    "use_enhanced_features",
    "temperature_hidden_size",
    "top_p_hidden_size",
)


def load_base(name: str | os.PathLike, method: str, **kwargs: Any) -> PreTrainedModel:
    """Load a base model by its name or folder; method is the caller's, for messages.

    Raises:
        TypeError: a name that is neither str nor path.
        ValueError: an AutoDeco checkpoint.
        OSError: neither a folder nor a repository that can be reached.
    """
    owner = f"autodeco_ext.AutoDecoModelForCausalLM.{method}"
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"{owner}: base_model must be a transformers model, or the name or folder of one, got"
            f" {type(name).__name__}"
        )
    own_config = Path(name) / "config.json"
    if (
        own_config.is_file()
        and json.loads(own_config.read_text()).get("model_type") == AutoDecoConfig.model_type
    ):
        raise ValueError(
            f"{owner}: base_model must be a model without AutoDeco heads, got {str(name)!r}"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(name, **kwargs)
    except ValueError as error:
        if Path(name).is_dir() and not own_config.is_file():
            message = f"{owner}: the base model's folder must hold a config.json, got {name}"
            raise OSError(message) from error
        raise
    except OSError as error:
        advice = " (base_model= names another one)" if method == "from_pretrained" else ""
        raise OSError(
            f"{owner}: the base model must be a folder or a hub repository that can be reached"
            f"{advice}, got {str(name)!r}: {error}"
        ) from error


def check_base(base: PreTrainedModel, method: str) -> None:
    """Raise ValueError unless a model can carry heads; method is the caller's, for messages."""
    prefix = f"autodeco_ext.AutoDecoModelForCausalLM.{method}: base_model must"
    name = type(base).__name__
    if isinstance(base, HeadsForwardMixin):
        raise ValueError(f"{prefix} be a model without AutoDeco heads, got {name}")
    if (
        not base.can_generate()
        or base.config.is_encoder_decoder
        or base.get_output_embeddings() is None
    ):
        raise ValueError(
            f"{prefix} be a decoder-only causal language model with an LM head, got {name}"
        )
    replaced = sorted({"forward", "generate"} & base.__dict__.keys())
    if replaced:
        raise ValueError(
            f"{prefix} not have its methods replaced (a model dispatched over several devices is"
            f" not supported in this version), got {name} with its own {', '.join(replaced)}"
        )


def load_merged(cls: type, folder: Path, base_config: Any, **kwargs: Any) -> Any:
    """Load a merged checkpoint's base tensors into cls, the AutoDeco class of its base.

    Raises:
        ValueError: base tensors missing.
    """
    # The base class's from_pretrained: the first in the MRO behind our own classes.
    model, info = super(HeadsForwardMixin, cls).from_pretrained(
        folder, config=base_config, key_mapping={r"^llm\.": ""}, output_loading_info=True, **kwargs
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{LOADER}: a merged checkpoint must hold every base tensor under llm., got none for"
            f" {missing} in {folder}"
        )
    return model


def read_config(folder: Path) -> AutoDecoConfig:
    """Read a checkpoint's config.json.

    Raises:
        OSError: no such file.
        ValueError: the config of another model.
    """
    if not (folder / "config.json").is_file():
        raise OSError(f"{LOADER}: the folder must hold a config.json, got {folder}")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != AutoDecoConfig.model_type:
        raise ValueError(
            f"{LOADER}: model_type in config.json must be {AutoDecoConfig.model_type!r}"
            f" (from_base puts heads on other models), got {model_type!r} in {folder}"
        )
    return AutoDecoConfig.from_pretrained(folder)


def head_options(config: AutoDecoConfig) -> dict[str, Any]:
    """The fields of a config that say how the heads are built."""
    return {name: getattr(config, name) for name in _HEAD_OPTIONS}


def head_shapes(config: AutoDecoConfig, hidden_size: int) -> dict[str, torch.Size]:
    """Shapes of all eight tensors, those of a head that is switched off included."""
    on = {"enable_temperature_head": True, "enable_top_p_head": True}
    both = AutoDecoConfig(hidden_size=hidden_size, **(head_options(config) | on))
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in AutoDecoHeads(both).state_dict().items()}

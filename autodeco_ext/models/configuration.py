"""AutoDecoConfig: what the heads look like, with the base model's configuration beside it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

# Fields that transformers keeps for every model. They live on AutoDecoConfig itself, so that
# for example `config.dtype` means what it means elsewhere.
_SHARED_FIELDS = {field.name for field in dataclasses.fields(PretrainedConfig)}
_NOT_THE_BASE_S = {"architectures", "transformers_version"}
# Accepted by every configuration's constructor, but properties of a loaded object, not of a file.
_RUNTIME_ARGUMENTS = {
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
}
# transformers 4 left these out of a file where they had these values; 5 has other defaults.
_TRANSFORMERS_4_DEFAULTS = {
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _plain(value: Any) -> Any:
    """The value as it comes back from a JSON file."""
    if isinstance(value, PretrainedConfig):
        return _plain(value.to_dict())
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _config_class(base_model_type: str) -> type[PretrainedConfig]:
    if base_model_type not in CONFIG_MAPPING or base_model_type == AutoDecoConfig.model_type:
        raise ValueError(
            "autodeco_ext.AutoDecoConfig: base_model_type must be a model type that transformers "
            f"knows, such as 'llama', got {base_model_type!r}"
        )
    return CONFIG_MAPPING[base_model_type]


def _declares(config_class: type[PretrainedConfig], name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(config_class)}


class AutoDecoConfig(PretrainedConfig):
    """Configuration of the AutoDeco heads, and of the base model they were made for.

    In ``config.json`` the base's own fields stand beside the ones below, as released checkpoints
    have them; they can be read and set as attributes (``config.vocab_size``), and `base_config()`
    turns them into the base's configuration again.

    Args:
        hidden_size: width H of the hidden states that the heads read, >= 1. May be left out where
            the base's fields say it.
        base_model_name_or_path: where a heads-only checkpoint finds its base model.
        base_model_type: the base's own model_type, such as "llama".
        enable_temperature_head, enable_top_p_head: a head that is off predicts 1 and has no
            weights. Without the top-p head the training loss is the temperature loss alone.
        use_enhanced_features: the top-p head reads [h, T, four statistics], else [h, T].
        temperature_hidden_size, top_p_hidden_size: width of the hidden layer, >= 1.
        base_architectures: the base configuration's own ``architectures``.
        **fields: the base's own fields, and what every configuration of transformers takes.

    Raises:
        ValueError, TypeError: a field is missing, out of range or of the wrong type.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = AutoDecoConfig.from_base(LlamaConfig(hidden_size=64, vocab_size=99))
        >>> config.hidden_size, config.vocab_size, config.base_config().vocab_size
        (64, 99, 99)
    """

    model_type = "autodeco"

    def __init__(
        self,
        hidden_size: int | None = None,
        base_model_name_or_path: str = "",
        base_model_type: str | None = None,
        enable_temperature_head: bool = True,
        enable_top_p_head: bool = True,
        use_enhanced_features: bool = True,
        temperature_hidden_size: int = 256,
        top_p_hidden_size: int = 256,
        base_architectures: list[str] | None = None,
        **fields: Any,
    ) -> None:
        fields.pop("model_type", None)
        version = fields.get("transformers_version") or ""
        shared = {"architectures": ["AutoDecoModelForCausalLM"]}
        for name in list(fields):
            if name in _SHARED_FIELDS or name in _RUNTIME_ARGUMENTS:
                shared[name] = fields.pop(name)
        super().__init__(**shared)

        self.hidden_size = hidden_size
        self.base_model_name_or_path = str(base_model_name_or_path or "")
        self.base_model_type = base_model_type
        self.enable_temperature_head = enable_temperature_head
        self.enable_top_p_head = enable_top_p_head
        self.use_enhanced_features = use_enhanced_features
        self.temperature_hidden_size = temperature_hidden_size
        self.top_p_hidden_size = top_p_hidden_size
        self.base_architectures = base_architectures
        self.base_fields = {k: _plain(v) for k, v in fields.items() if not k.startswith("_")}
        if base_model_type is not None:
            config_class = _config_class(base_model_type)
            if version.startswith("4."):
                for name, value in _TRANSFORMERS_4_DEFAULTS.items():
                    if _declares(config_class, name):
                        self.base_fields.setdefault(name, value)
            if hidden_size is None:
                text_config = self.base_config().get_text_config()
                self.hidden_size = getattr(text_config, "hidden_size", None)
        self._check()

    def _check(self) -> None:
        for name in ("hidden_size", "temperature_hidden_size", "top_p_hidden_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, type(None))):
                raise TypeError(
                    f"autodeco_ext.AutoDecoConfig: {name} must be an int, "
                    f"got {type(value).__name__}"
                )
            if value is None or value < 1:
                raise ValueError(f"autodeco_ext.AutoDecoConfig: {name} must be >= 1, got {value}")
        for name in ("enable_temperature_head", "enable_top_p_head", "use_enhanced_features"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(
                    f"autodeco_ext.AutoDecoConfig: {name} must be a bool, "
                    f"got {type(value).__name__}"
                )

    @classmethod
    def from_base(
        cls,
        base_config: PretrainedConfig,
        *,
        base_model_name_or_path: str | None = None,
        **options: Any,
    ) -> AutoDecoConfig:
        """The configuration of heads for a base model.

        Args:
            base_config: configuration of the base, of a type that transformers' AutoConfig knows.
            base_model_name_or_path: where to load the base from later; by default where its
                configuration was loaded from.
            **options: enable_temperature_head, temperature_hidden_size and so on.

        Raises:
            TypeError: base_config is not the configuration of a base model.
            ValueError: it has no hidden size, or a type that AutoConfig does not know.
        """
        if not isinstance(base_config, PretrainedConfig) or isinstance(base_config, AutoDecoConfig):
            raise TypeError(
                "autodeco_ext.AutoDecoConfig.from_base: base_config must be the configuration of a "
                f"base model, got {type(base_config).__name__}"
            )
        hidden_size = getattr(base_config.get_text_config(), "hidden_size", None)
        if hidden_size is None:
            raise ValueError(
                "autodeco_ext.AutoDecoConfig.from_base: base_config must have a hidden_size, got "
                f"a {type(base_config).__name__} without one"
            )
        fields = base_config.to_dict()
        for name in ("model_type", "transformers_version", "hidden_size", "_name_or_path"):
            fields.pop(name, None)
        if base_model_name_or_path is None:
            base_model_name_or_path = base_config.name_or_path
        return cls(
            hidden_size=hidden_size,
            base_model_name_or_path=base_model_name_or_path,
            base_model_type=base_config.model_type,
            base_architectures=fields.pop("architectures", None),
            **(fields | options),
        )

    def base_config(self) -> PretrainedConfig:
        """The base model's own configuration, of the class that AutoConfig has for it.

        Raises:
            ValueError: base_model_type is missing or unknown, or the base's fields say another
                hidden size.
        """
        if self.base_model_type is None:
            raise ValueError(
                "autodeco_ext.AutoDecoConfig.base_config: base_model_type must be set, got None"
            )
        config_class = _config_class(self.base_model_type)
        fields = copy.deepcopy(self.base_fields)
        for name in _SHARED_FIELDS - _NOT_THE_BASE_S:
            fields[name] = copy.deepcopy(getattr(self, name))
        fields["architectures"] = copy.deepcopy(self.base_architectures)
        fields["name_or_path"] = self.base_model_name_or_path
        # A composite configuration keeps the width in its text part and would gain a stray field.
        if self.hidden_size is not None and (
            not config_class.sub_configs or _declares(config_class, "hidden_size")
        ):
            fields["hidden_size"] = self.hidden_size
        base = AutoConfig.for_model(self.base_model_type, **fields)
        width = getattr(base.get_text_config(), "hidden_size", None)
        if self.hidden_size is not None and width != self.hidden_size:
            raise ValueError(
                "autodeco_ext.AutoDecoConfig: hidden_size must be that of the base configuration, "
                f"{width}, got {self.hidden_size}"
            )
        return base

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The base's text configuration, or this one where there is no base."""
        if self.__dict__.get("base_model_type") is None:
            return self
        return self.base_config().get_text_config(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields, the base's beside the heads'."""
        own = super().to_dict()
        return own.pop("base_fields", {}) | own

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("base_fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        fields = self.__dict__.get("base_fields", {})
        if name in fields:
            fields[name] = _plain(value)
        else:
            super().__setattr__(name, value)

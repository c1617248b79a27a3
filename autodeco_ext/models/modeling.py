"""AutoDecoModelForCausalLM: any causal language model of transformers plus the two heads."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from autodeco_ext.generation.generate import DrawingGenerationMixin
from autodeco_ext.models.checkpoint import (
    LOADER,
    find_checkpoint,
    read_head_tensors,
    write_head_tensors,
)
from autodeco_ext.models.configuration import AutoDecoConfig
from autodeco_ext.models.forward import HeadsForwardMixin
from autodeco_ext.models.heads import AutoDecoHeads
from autodeco_ext.models.loading import (
    HUB_OPTIONS,
    check_base,
    head_options,
    head_shapes,
    load_base,
    load_merged,
    read_config,
)


class AutoDecoModelForCausalLM(HeadsForwardMixin, DrawingGenerationMixin):
    """A causal language model that predicts its own temperature and top_p.

    Built with from_base or from_pretrained, never called itself. What they return is an instance of
    AutoDeco<Base> = (AutoDecoModelForCausalLM, <Base>), a subclass of the base model's own class,
    so that it is a model of transformers like any other: model.config is the base's config, and
    logits are the base's. In addition:

    - model.heads is the AutoDecoHeads, always float32; model.autodeco_config the AutoDecoConfig;
    - forward returns the base's output with the fields temperature and top_p, [batch, positions],
      one entry per position that logits are computed for; with labels the AutoDeco loss, and in
      training that alone;
    - model.max_chunk_bytes, 32 MiB until it is set, bounds what that loss makes of the logits at a
      time (linear_autodeco_loss);
    - generate(do_sample=True) draws each token with the predicted values.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> base = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes))
        >>> model = AutoDecoModelForCausalLM.from_base(base)
        >>> output = model(torch.tensor([[1, 2, 3]]))
        >>> output.logits.shape, output.temperature.shape
        (torch.Size([1, 3, 16]), torch.Size([1, 3]))
    """

    # For AutoModelForCausalLM.register; every AutoDeco<Base> has the config class of its base.
    config_class = AutoDecoConfig

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is AutoDecoModelForCausalLM:
            raise TypeError(
                "autodeco_ext.AutoDecoModelForCausalLM: must be built with from_base or"
                " from_pretrained, got a direct call"
            )
        return super().__new__(cls)

    @classmethod
    def from_base(
        cls,
        base_model: PreTrainedModel | str | os.PathLike,
        *,
        enable_temperature_head: bool = True,
        enable_top_p_head: bool = True,
        use_enhanced_features: bool = True,
        temperature_hidden_size: int = 256,
        top_p_hidden_size: int = 256,
        **kwargs: Any,
    ) -> Any:
        """Put new, untrained heads on a base model.

        The result shares the modules and weights of a base model that is passed as an object;
        nothing is copied and the object itself stays what it was. The heads are initialised from
        torch's generator.

        Args:
            base_model: a causal language model, or the name or folder of one.
            enable_temperature_head, enable_top_p_head: whether there is such a head.
            use_enhanced_features: whether the top-p head reads statistics of the logits.
            temperature_hidden_size, top_p_hidden_size: width of the heads' hidden layers.
            kwargs: with a name or folder, passed to AutoModelForCausalLM.from_pretrained (dtype,
                gguf_file, ...).

        Raises:
            TypeError: a base_model that is neither model, name nor folder, or kwargs with a model.
            ValueError: a model that cannot carry heads, or has some.
            OSError: the base model cannot be read.
        """
        if not isinstance(base_model, PreTrainedModel):
            base_model = load_base(base_model, "from_base", **kwargs)
        elif kwargs:
            raise TypeError(
                "autodeco_ext.AutoDecoModelForCausalLM.from_base: further arguments require the"
                f" name or folder of a base model, got a model object and {sorted(kwargs)}"
            )
        check_base(base_model, "from_base")
        config = AutoDecoConfig.from_base(
            base_model.config,
            base_model_name_or_path=base_model.name_or_path,
            enable_temperature_head=enable_temperature_head,
            enable_top_p_head=enable_top_p_head,
            use_enhanced_features=use_enhanced_features,
            temperature_hidden_size=temperature_hidden_size,
            top_p_hidden_size=top_p_hidden_size,
        )
        return _attach(_share(base_model), config, AutoDecoHeads(config))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: AutoDecoConfig | None = None,
        base_model: PreTrainedModel | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load an AutoDeco checkpoint, heads-only or merged.

        Args:
            pretrained_model_name_or_path: folder or hub repository of the checkpoint.
            config: instead of the checkpoint's config.json.
            base_model: object, name or folder to use in place of config.base_model_name_or_path
                (heads-only) or of the base tensors in the checkpoint (merged).
            kwargs: cache_dir, force_download, local_files_only, revision and token say how to
                fetch the checkpoint; all but revision, and everything else (dtype, device_map,
                ...), goes to the loading of the base.

        Raises:
            TypeError: a checkpoint or base_model of another type, or kwargs that do not apply.
            ValueError: head tensors missing, extra, with NaN or infinity, of a shape that does not
                fit config.json or the base model, or no base model to be found.
            OSError: checkpoint or base model cannot be read.
        """
        if kwargs.pop("output_loading_info", False):
            raise ValueError(f"{LOADER}: output_loading_info must be False, got True")
        for name in ("adapter_kwargs", "_from_auto", "code_revision", "_commit_hash"):
            kwargs.pop(name, None)  # set by AutoModelForCausalLM.from_pretrained
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        kwargs.pop("revision", None)  # of the checkpoint's repository, not of the base's
        folder = find_checkpoint(pretrained_model_name_or_path, **hub_options)
        config = read_config(folder) if config is None else config
        found = read_head_tensors(folder)
        heads = AutoDecoHeads(config)
        names = heads.state_dict().keys()
        reason = f"hidden_size {config.hidden_size} in config.json"
        found.check_shapes(head_shapes(config, config.hidden_size), names, reason)

        if isinstance(base_model, PreTrainedModel):
            unused = sorted(kwargs.keys() - {*HUB_OPTIONS, "trust_remote_code"})
            if unused:
                raise TypeError(
                    f"{LOADER}: with a base_model object there must be no loading options for it,"
                    f" got {unused}"
                )
            check_base(base_model, "from_pretrained")
            base, model = base_model, _share(base_model)
        elif base_model is None and found.merged:
            base_config = config.base_config()
            base_class = AutoModelForCausalLM._model_mapping[type(base_config)]
            base = model = load_merged(autodeco_class(base_class), folder, base_config, **kwargs)
        else:
            name = base_model or config.base_model_name_or_path
            if not name:
                raise ValueError(
                    f"{LOADER}: base_model must be given (the checkpoint holds only the heads, and"
                    f" its config.json does not name the base model), got None for {folder}"
                )
            gguf_file = (getattr(config, "quantization_config", None) or {}).get("gguf_file")
            if base_model is None and gguf_file:
                kwargs.setdefault("gguf_file", gguf_file)  # a folder alone does not name the file
            base = load_base(name, "from_pretrained", **kwargs)
            check_base(base, "from_pretrained")
            model = _share(base)
        base_size = base.config.get_text_config().hidden_size
        if base_size != config.hidden_size:
            name = base.name_or_path or type(base).__name__
            reason = f"base model {name} has hidden_size {base_size}"
            found.check_shapes(head_shapes(config, base_size), names, reason)

        heads.load_state_dict({name: found.tensors[name].float() for name in names})
        if base_model is not None:
            name = base.name_or_path or config.base_model_name_or_path
            config = AutoDecoConfig.from_base(
                base.config, base_model_name_or_path=name, **head_options(config)
            )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return _attach(model, config, heads)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write a heads-only checkpoint: config.json, generation_config.json, float32 tensors.

        The base is not written. from_pretrained loads it from config.base_model_name_or_path, or
        from its argument base_model, which is needed if the base was an object without a name.

        Args:
            save_directory: created if need be; must not hold other *.safetensors files.
            is_main_process: write nothing if False.
            state_dict: take the head tensors (heads.*) from here instead of from the model.
            push_to_hub: must be False; call model.push_to_hub(repository) instead.
            kwargs: what transformers passes for sharding the base; without effect.
        """
        if push_to_hub:
            raise ValueError(
                "autodeco_ext.AutoDecoModelForCausalLM.save_pretrained: push_to_hub must be False"
                " (call model.push_to_hub instead), got True"
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self.heads.state_dict()
        if state_dict is not None:
            tensors = {name: state_dict[f"heads.{name}"] for name in tensors}
        write_head_tensors(folder, {name: tensor.float() for name, tensor in tensors.items()})
        self.autodeco_config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    @classmethod
    def _from_config(cls, config: AutoDecoConfig, **kwargs: Any) -> Any:
        """Build an untrained model; AutoModelForCausalLM.from_config calls this."""
        base = AutoModelForCausalLM.from_config(config.base_config(), **kwargs)
        return _attach(_share(base), config, AutoDecoHeads(config))

    def __reduce_ex__(self, protocol: int) -> tuple:
        if type(self) is autodeco_class(self._base_class):
            # The class is made on demand, so pickle and deepcopy cannot find it by its name.
            return _rebuild, (self._base_class,), self.__dict__.copy()
        return super().__reduce_ex__(protocol)


@functools.cache
def autodeco_class(base_class: type[PreTrainedModel]) -> type:
    """Return AutoDeco<Base>, the subclass of a model class that has the heads."""
    names = [name for name in inspect.signature(base_class.forward).parameters if name != "self"]

    @functools.wraps(base_class.forward)  # generate and Trainer look at the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._forward_with_heads(**dict(zip(names, args, strict=False)), **kwargs)

    forward.__doc__ = f"""{base_class.__name__}.forward with the predictions of the heads.

    Returns the base's output (logits unscaled) with the fields temperature and top_p added at the
    end: float32, [batch, positions], the positions that logits are returned for. Without gradient
    into the base.

    labels: [batch, sequence], unshifted, -100 ignored. The loss is then the AutoDeco loss of the
    two heads as released (autodeco_ext.autodeco_loss), not the base's cross entropy; its gradient
    reaches the heads only. Easy tokens, which the base gets right anyway, are dropped from the
    temperature part with probability 0.6, by random numbers from torch's generator.
    num_items_in_batch: the number both of its sums are divided by, for gradient accumulation;
    without it each part is the mean over the positions it counts.
    skip_logits: with labels, leave logits, temperature and top_p out (None) and make no logits of
    all positions for the loss. None does so while the heads train (model.heads.training). The
    logits of a chunk of positions then take at most model.max_chunk_bytes.
    """
    ignored = [
        *(base_class._keys_to_ignore_on_load_unexpected or []),
        r"^temp_head\.",
        r"^top_p_head\.",
    ]
    namespace = {
        "__module__": __name__,
        "__doc__": AutoDecoModelForCausalLM.__doc__,
        "forward": forward,
        "config_class": base_class.config_class,
        "_base_class": base_class,
        "_keys_to_ignore_on_load_unexpected": ignored,
    }
    return type(f"AutoDeco{base_class.__name__}", (AutoDecoModelForCausalLM, base_class), namespace)


def _rebuild(base_class: type[PreTrainedModel]) -> Any:
    cls = autodeco_class(base_class)
    return cls.__new__(cls)


def _share(base: PreTrainedModel) -> Any:
    """A model of the class AutoDeco<Base> with the very modules, parameters and buffers of base."""
    model = _rebuild(type(base))
    for name, value in base.__dict__.items():
        if name in ("_compiled_call", "_compiled_call_impl", "_last_compile_config"):
            continue  # a compiled call of the base would go on running the base's forward
        # The containers are copied, so that the heads and later hooks are registered here and not
        # on the base.
        model.__dict__[name] = copy.copy(value) if isinstance(value, (dict, set, list)) else value
    model.generation_config = copy.deepcopy(base.generation_config)
    return model


def _attach(model: Any, config: AutoDecoConfig, heads: AutoDecoHeads) -> Any:
    parameter = next(model.get_output_embeddings().parameters())
    model.heads = heads.to(parameter.device).train(model.training)
    model.autodeco_config = config
    if model.generation_config.temperature is None:
        # generate ignores it, but text-generation pipelines set temperature=0.7 explicitly where
        # the model says nothing, and an explicit temperature takes the place of the head's.
        model.generation_config.temperature = 1.0
    return model


AutoConfig.register(AutoDecoConfig.model_type, AutoDecoConfig, exist_ok=True)
AutoModelForCausalLM.register(AutoDecoConfig, AutoDecoModelForCausalLM, exist_ok=True)

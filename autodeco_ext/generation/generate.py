"""What makes Hugging Face generate draw from the heads' distribution."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from autodeco_ext._arguments import require_bool
from autodeco_ext.generation.drawing import ACTIVE_DRAW, Draw, DrawingProcessor, StepEnd
from autodeco_ext.generation.parameters import SamplingParameters, check_seed
from autodeco_ext.generation.trace import AutoDecoGenerateOutput

_OURS = ("temperature", "top_p", "top_k", "min_p")

# Of stock generate, behind self, inputs and generation_config: people may pass them by position.
_FURTHER_ARGUMENTS = tuple(inspect.signature(GenerationMixin.generate).parameters)[3:]

# Warpers without a counterpart in sample, with the values that switch them off.
_OTHER_WARPERS = {
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}

# Fields that change the logits before T and P, with the values that switch them off. They are
# honoured also when only the model's own generation_config asks for them, as people expect of a
# checkpoint, but not silently. renormalize_logits is not among them: it shifts all logits of a row
# by the same amount, which changes no probability.
_LOGIT_CHANGES = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "remove_invalid_values": (None, False),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
}


def _own_draw(model: object) -> Draw | None:
    """The draw of the generate call of this very model, if it samples."""
    draw = ACTIVE_DRAW.get()
    return draw if draw is not None and draw.owner is model else None


class DrawingGenerationMixin:
    """Overrides of GenerationMixin; comes before the base model's class in the MRO."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        seed: int | torch.Tensor | None = None,
        return_trace: bool = False,
        valid_vocab: int | None = None,
        **kwargs: Any,
    ) -> torch.LongTensor | Any:
        """Generate as Hugging Face does, but draw with the predicted T and P if do_sample=True.

        At each step the heads predict T and P from the hidden state, every active logits processor
        runs on the raw logits, and one token is drawn from softmax(logits / T) restricted to the
        nucleus of P. do_sample is decided as in stock generate (argument, generation_config, the
        model's own generation_config, else False); do_sample=False is stock decoding.

        temperature, top_p, top_k and min_p of the model's own generation_config, and the TopK(50)
        that a bare do_sample=True adds in stock generate, do not apply. What the caller gives
        does, as an argument or in a generation_config: temperature and top_p replace the heads'
        values, top_k and min_p are added.

        Args:
            inputs, generation_config, further arguments: as in transformers'
                GenerationMixin.generate.
            temperature, top_p, top_k, min_p: scalars, or tensors with one entry per prompt or per
                sequence.
            seed: an int s (sequence r uses s + r), an int64 tensor with one entry per sequence
                (prompts times num_return_sequences), or None for seeds from torch's global
                generator. A sequence's tokens depend on its seed and its own prompt, not on its
                batchmates (up to rounding in the model itself).
            return_trace: return an AutoDecoGenerateOutput, whose trace is a DecodingTrace.
            valid_vocab: with do_sample=True, columns at or beyond it are never drawn (padded
                embedding tables).

        Returns:
            What stock generate returns. With output_scores=True, scores are the filtered float32
            logits / T (-inf outside the kept set), whose softmax is the distribution each token
            was drawn from.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: a bad argument, an empty prompt or one longer than the model, sampling
                combined with beams, assisted decoding, watermarking, continuous batching or
                custom_generate, or NaN in the logits or a prediction.

        Example:
            >>> import torch
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> from autodeco_ext import AutoDecoModelForCausalLM
            >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
            >>> base = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes))
            >>> model = AutoDecoModelForCausalLM.from_base(base)
            >>> prompt = torch.tensor([[1, 5, 6]])
            >>> model.generate(prompt, do_sample=True, max_new_tokens=1, seed=0).shape
            torch.Size([1, 4])
        """
        check_seed(seed, "generate")
        require_bool("generate", "return_trace", return_trace)
        _check_valid_vocab(valid_vocab, self)
        self._check_prompt(inputs, kwargs)
        arguments = {name: kwargs.pop(name) for name in _OURS if name in kwargs}
        merged, _ = self._prepare_generation_config(generation_config, **kwargs)
        if merged.do_sample:
            is_own = generation_config is self.generation_config
            config_argument = None if is_own else generation_config
            given = _given(arguments, config_argument)
            parameters = SamplingParameters(**given).check("generate")
            further = dict(zip(_FURTHER_ARGUMENTS, args, strict=False)) | kwargs
            _check_can_draw(merged, config_argument, further)
            _warn_about_own_config(self, config_argument, kwargs)
            draw = Draw(self, parameters, seed, valid_vocab, wants_trace=return_trace)
        else:
            _check_greedy(arguments, return_trace, valid_vocab)
            kwargs.update(arguments)
            draw = None
        token = ACTIVE_DRAW.set(draw)
        try:
            result = super().generate(inputs, generation_config, *args, **kwargs)
        finally:
            ACTIVE_DRAW.reset(token)
        if not return_trace:
            return result
        sequences = result if isinstance(result, torch.Tensor) else result.sequences
        fields = {"sequences": result} if isinstance(result, torch.Tensor) else dict(result.items())
        return AutoDecoGenerateOutput(**fields, trace=draw.trace(sequences))

    def generate_batch(
        self, inputs: list, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        """Continuous batching, greedy only: it offers no place to draw with the heads' T and P."""
        self._refuse_continuous_sampling(generation_config, kwargs)
        return super().generate_batch(inputs, generation_config, **kwargs)

    def init_continuous_batching(
        self, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        """Continuous batching, greedy only: it offers no place to draw with the heads' T and P."""
        self._refuse_continuous_sampling(generation_config, kwargs)
        return super().init_continuous_batching(generation_config, **kwargs)

    def _refuse_continuous_sampling(
        self, generation_config: GenerationConfig | None, kwargs: dict
    ) -> None:
        config = self.generation_config if generation_config is None else generation_config
        if kwargs.get("do_sample", config.do_sample):
            raise ValueError(
                "autodeco_ext.generate_batch: do_sample must be False (drawing with the heads'"
                " temperature and top_p is not supported under continuous batching in this"
                " version), got True"
            )

    def _check_prompt(self, inputs: torch.Tensor | None, kwargs: dict) -> None:
        candidates = {
            "inputs_embeds": kwargs.get("inputs_embeds"),
            "inputs": inputs,
            "input_ids": kwargs.get("input_ids"),
        }
        given = [(name, value) for name, value in candidates.items() if value is not None]
        if not given:
            return  # generate starts from the model's bos_token_id
        name, prompt = given[0]
        axes = ["rows", "tokens", "hidden_size"] if name == "inputs_embeds" else ["rows", "tokens"]
        shape = f"[{', '.join(axes)}]"
        if not isinstance(prompt, torch.Tensor):
            raise TypeError(
                f"autodeco_ext.generate: {name} must be a tensor {shape}, got"
                f" {type(prompt).__name__}"
            )
        if prompt.dim() != len(axes) or prompt.numel() == 0:
            raise ValueError(
                f"autodeco_ext.generate: {name} must have shape {shape} with at least one row and"
                f" one token, got {list(prompt.shape)}"
            )
        self._check_prompt_length(prompt.shape[1], kwargs.get("attention_mask"))

    def _check_prompt_length(self, length: int, mask: torch.Tensor | None) -> None:
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if limit is None or length <= limit:
            return
        # Left padding takes no positions: what counts is the longest row without it.
        if mask is not None and mask.dim() == 2 and len(mask):
            length = int((mask != 0).sum(-1).max())
        if length > limit:
            raise ValueError(
                f"autodeco_ext.generate: the prompt must have at most {limit} tokens (the model's"
                f" max_position_embeddings), got {length}"
            )

    def _get_logits_processor(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> Any:
        if _own_draw(self) is not None:
            # Warpers are built only for do_sample=True, and ours are the only ones that may run.
            generation_config = copy.copy(generation_config)
            generation_config.do_sample = False
        return super()._get_logits_processor(generation_config, *args, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        draw = _own_draw(self)
        if draw is not None:
            # The loop calls this after every forward pass, the prefill included, and before the
            # processors.
            draw.observe(outputs.temperature[:, -1], outputs.top_p[:, -1])
        return super()._update_model_kwargs_for_generation(outputs, *args, **kwargs)

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        draw = _own_draw(self)
        if draw is not None:
            wants_scores = bool(
                generation_config.return_dict_in_generate and generation_config.output_scores
            )
            draw.begin(input_ids.shape[0], input_ids.device, wants_scores)
            # A greedy loop over rows in which only the drawn token is finite: the stock loop stays
            # the only loop.
            logits_processor = type(logits_processor)([*logits_processor, DrawingProcessor(draw)])
            stopping_criteria = StepEnd(stopping_criteria, draw)
            generation_config = copy.copy(generation_config)
            generation_config.do_sample = False
        return super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )


def _given(arguments: dict[str, Any], generation_config: GenerationConfig | None) -> dict[str, Any]:
    """Return the temperature, top_p, top_k and min_p that the caller really gave."""
    in_config = {
        name: getattr(generation_config, name)
        for name in _OURS
        if name not in arguments and getattr(generation_config, name, None) is not None
    }
    if in_config:
        # People copy model.generation_config to change its length limits, which brings its
        # temperature along.
        shown = ", ".join(f"{name}={value}" for name, value in in_config.items())
        warnings.warn(
            f"autodeco_ext.generate: {shown} of the generation_config argument replace (top_k and"
            " min_p: are added to) what the heads predict; None there keeps the prediction",
            stacklevel=4,
        )
    return {name: value for name, value in (in_config | arguments).items() if value is not None}


def _check_greedy(arguments: dict[str, Any], return_trace: bool, valid_vocab: int | None) -> None:
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    wanted = ["return_trace"] * return_trace + ["valid_vocab"] * (valid_vocab is not None)
    for name in wanted + [f"a tensor as {name}" for name in tensors]:
        raise ValueError(f"autodeco_ext.generate: {name} requires do_sample=True, got False")


def _check_valid_vocab(valid_vocab: int | None, model: Any) -> None:
    if valid_vocab is None:
        return
    if isinstance(valid_vocab, bool) or not isinstance(valid_vocab, int):
        raise TypeError(f"autodeco_ext.generate: valid_vocab must be an int, got {valid_vocab!r}")
    vocab_size = model.config.get_text_config().vocab_size
    if not 1 <= valid_vocab <= vocab_size:
        raise ValueError(
            f"autodeco_ext.generate: valid_vocab must be in [1, {vocab_size}], got {valid_vocab}"
        )


def _check_can_draw(
    merged: GenerationConfig, generation_config: GenerationConfig | None, further: dict[str, Any]
) -> None:
    """Refuse what would not draw from the heads' distribution; further: arguments by name."""
    unsupported = None
    mode = merged.get_generation_mode(further.get("assistant_model"))
    if mode != GenerationMode.SAMPLE:
        unsupported = f"generation mode {mode.value!r}"
    elif further.get("custom_generate") is not None:
        unsupported = "custom_generate"
    elif merged.cache_implementation == "paged":
        unsupported = "cache_implementation='paged'"
    elif merged.watermarking_config is not None:
        unsupported = "watermarking_config"
    else:
        for name, off in _OTHER_WARPERS.items():
            # What only the model's own generation_config asks for is ignored, like its temperature.
            value = further.get(name, getattr(generation_config, name, None))
            if value not in off:
                unsupported = f"{name}={value}"
    if unsupported is not None:
        raise ValueError(
            "autodeco_ext.generate: do_sample=True must be plain sampling (other modes are not"
            f" supported in this version), got {unsupported}"
        )


def _warn_about_own_config(
    model: Any, generation_config: GenerationConfig | None, kwargs: dict
) -> None:
    own = model.generation_config
    names = [
        f"{name}={getattr(own, name)}"
        for name, off in _LOGIT_CHANGES.items()
        if getattr(own, name, None) not in off
        and name not in kwargs
        and (generation_config is None or getattr(generation_config, name, None) is None)
    ]
    if names:
        warnings.warn(
            f"autodeco_ext.generate: the model's generation_config asks for {', '.join(names)},"
            " which changes the logits before temperature and top_p; pass the neutral value to"
            " switch it off",
            stacklevel=4,
        )

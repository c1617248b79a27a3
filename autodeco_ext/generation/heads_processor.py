"""AutoDecoLogitsProcessor: heads for a model object that its owner keeps as it is."""

from __future__ import annotations

import threading
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from autodeco_ext.generation.mode_processor import Mode, ModeProcessor
from autodeco_ext.generation.parameters import SamplingParameters

if TYPE_CHECKING:
    from autodeco_ext.models.heads import AutoDecoHeads


@dataclass
class _ForwardPass:
    """The model's last forward pass, for the K positions it has logits for."""

    hidden_states: torch.Tensor  # [batch, K, hidden_size]
    logits: torch.Tensor  # [batch, K, vocab]
    end: int  # number of tokens up to the last of the K positions, counted only if K > 1
    is_compilable_cache: bool
    length: int | None = None  # K = 1: the length of the input_ids it was first used for


class AutoDecoLogitsProcessor(ModeProcessor):
    """Filter or draw with what heads predict for a model object that the caller keeps.

    Two hooks on the model hand the LM head's input and the logits to this processor: one before
    the LM head, one after the model's forward. Only calls of that very model count, in the thread
    they are made in. Works with sampling, left padding, num_return_sequences, and with assisted
    decoding and prompt lookup (every position gets its own T and P). Scores that do not belong to
    the model's last forward pass (those of an assistant) come back untouched. In beam search, which
    mode "sample" refuses, pass renormalize_logits=True.

    Args:
        heads: an AutoDecoHeads for the model's hidden size, on the device of its LM head.
        model: a causal language model of transformers without heads of its own.
        mode: "filter" for do_sample=True, "sample" to draw here, for do_sample=False, as in
            SamplingLogitsProcessor; generate must not add warpers of its own: pass
            **processor.generate_kwargs().
        seed: mode "sample" only, as in SamplingLogitsProcessor.

    Detach with remove(), or use the processor as a context manager.

    Raises:
        TypeError: heads or model of another type.
        ValueError: heads that do not fit the model, classifier-free guidance (its second forward
            pass hides the first one's hidden states), or mode "sample" in beam search.
        RuntimeError: torch.compile has bypassed the hooks.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from autodeco_ext import AutoDecoConfig, AutoDecoHeads
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes))
        >>> heads = AutoDecoHeads(AutoDecoConfig(hidden_size=8))
        >>> with AutoDecoLogitsProcessor(heads, model) as processor:
        ...     model.generate(
        ...         torch.tensor([[1, 5, 6]]),
        ...         logits_processor=[processor],
        ...         max_new_tokens=1,
        ...         **processor.generate_kwargs(),
        ...     ).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        heads: AutoDecoHeads,
        model: PreTrainedModel,
        *,
        mode: Mode = "filter",
        seed: int | torch.Tensor | None = None,
    ) -> None:
        super().__init__("AutoDecoLogitsProcessor", mode, seed)
        _check_pair(heads, model)
        self.heads = heads
        self._state = threading.local()
        self._warned_early = False
        hooks = _Hooks(self)
        handles = [
            model.get_output_embeddings().register_forward_pre_hook(hooks.before_lm_head),
            model.register_forward_hook(hooks.after_model, with_kwargs=True),
        ]
        self._detach = weakref.finalize(self, _remove_all, handles)

    def remove(self) -> None:
        """Take the hooks off the model; the processor cannot be used afterwards."""
        self._detach()
        self._state = threading.local()

    def __enter__(self) -> AutoDecoLogitsProcessor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not self._detach.alive:
            raise RuntimeError(
                "autodeco_ext.AutoDecoLogitsProcessor: must be attached, got a call after remove()"
            )
        before, _ = self.neighbours()
        if any(isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor) for p in before):
            raise ValueError(
                "autodeco_ext.AutoDecoLogitsProcessor: guidance_scale must be off (it runs the"
                " model a second time before this processor; AutoDecoModelForCausalLM supports"
                " it), got a guidance processor"
            )
        last = getattr(self._state, "last", None)
        if last is None:
            self._warn_early()
            return scores
        row = self._row(last, input_ids, scores)
        if row is None:
            return scores
        predicted = self.heads(last.hidden_states[:, row], last.logits[:, row])
        return self.apply(
            input_ids, scores, SamplingParameters(predicted.temperature, predicted.top_p)
        )

    def _row(self, last: _ForwardPass, input_ids: torch.Tensor, scores: torch.Tensor) -> int | None:
        """Which of the K positions predicts the token after input_ids, if any."""
        batch, positions, vocab = last.logits.shape
        if scores.shape != (batch, vocab):
            return None
        length = input_ids.shape[1]
        if positions > 1:
            row = length - 1 - (last.end - positions)
            return row if 0 <= row < positions else None
        if last.length is None:
            last.length = length
        if last.length == length:
            return 0
        if last.is_compilable_cache:
            # generate compiles the forward pass for such a cache, and dynamo ignores hooks that
            # were registered after the first compilation. Assistants, the other callers with
            # another length, cannot use these caches.
            raise RuntimeError(
                "autodeco_ext.AutoDecoLogitsProcessor: the model's forward must run its hooks,"
                " got a compiled forward that ignores them (pass disable_compile=True to generate)"
            )
        return None

    def _warn_early(self) -> None:
        if not self._warned_early:
            self._warned_early = True
            warnings.warn(
                "autodeco_ext.AutoDecoLogitsProcessor: called before the model it is attached to"
                " has run in this thread, scores returned untouched (expected of an assistant's"
                " first draft, else it is attached to another model than the one that generates)",
                stacklevel=3,
            )


class _Hooks:
    """The hooks of one processor. Copies and pickles of the model get inert ones."""

    def __init__(self, processor: AutoDecoLogitsProcessor | None = None) -> None:
        self._processor = (lambda: None) if processor is None else weakref.ref(processor)

    def __reduce__(self) -> tuple:
        return _Hooks, ()

    @torch.compiler.disable
    def before_lm_head(self, module: torch.nn.Module, args: tuple) -> None:
        processor = self._processor()
        if processor is not None and args:
            # Pending until the model's forward ends: another model may borrow the LM head.
            processor._state.pending = args[0]

    @torch.compiler.disable
    def after_model(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        processor = self._processor()
        if processor is None:
            return
        state = processor._state
        pending, state.pending, state.last = getattr(state, "pending", None), None, None
        logits = getattr(output, "logits", None)
        if torch.is_grad_enabled() or logits is None:
            return  # not a forward pass of generate: keep nothing alive
        if pending is None or pending.shape[:-1] != logits.shape[:-1]:
            raise RuntimeError(
                "autodeco_ext.AutoDecoLogitsProcessor: the LM head must run its hook once per"
                " forward pass, got none (hooks registered after torch.compile are ignored:"
                " attach the processor before compiling)"
            )
        cache = getattr(output, "past_key_values", None)
        end = 0
        if logits.shape[1] > 1:
            # Without a cache every forward pass gets the whole sequence.
            end = _input_length(args, kwargs) if cache is None else int(cache.get_seq_length())
        is_compilable = bool(getattr(cache, "is_compileable", False))
        is_compilable = is_compilable and type(cache).__name__ != "DynamicCache"
        state.last = _ForwardPass(pending, logits, end, is_compilable)


def _input_length(args: tuple, kwargs: dict) -> int:
    given = next(
        x
        for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args)
        if isinstance(x, torch.Tensor)
    )
    return given.shape[1]


def _remove_all(handles: list) -> None:
    for handle in handles:
        handle.remove()


def _check_pair(heads: Any, model: Any) -> None:
    from autodeco_ext.models.heads import require_heads  # whoever has heads has imported this

    require_heads("AutoDecoLogitsProcessor", heads)
    owner = "autodeco_ext.AutoDecoLogitsProcessor"
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise TypeError(
            f"{owner}: model must be a transformers model with an LM head, got"
            f" {type(model).__name__}"
        )
    if hasattr(model, "autodeco_config"):
        raise ValueError(
            f"{owner}: model must not have heads of its own (its generate uses them), got"
            f" {type(model).__name__}"
        )
    if model._compiled_call_impl or model.get_output_embeddings()._compiled_call_impl:
        raise ValueError(
            f"{owner}: model must not be compiled yet (hooks registered later would be ignored:"
            " attach the processor before model.compile()), got a compiled one"
        )
    expected, got = model.config.get_text_config().hidden_size, heads.hidden_size
    if got != expected:
        raise ValueError(f"{owner}: heads must have the model's hidden_size {expected}, got {got}")
    device = next(model.get_output_embeddings().parameters()).device
    heads_device = next((parameter.device for parameter in heads.parameters()), device)
    if heads_device != device:
        raise ValueError(
            f"{owner}: heads must be on the device of the LM head, {device}, got {heads_device}"
        )

"""AutoDecoModelForCausalLM's forward: the base's, the heads, with labels the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from autodeco_ext.models.heads import HeadOutput
from autodeco_ext.models.lm_head_input import (
    LAST_HIDDEN_STATE_MODELS,
    capture_lm_head_input,
    kept_positions,
)
from autodeco_ext.models.outputs import with_predictions
from autodeco_ext.reference import autodeco_loss


class HeadsForwardMixin:
    """Needs self.heads and self._base_class; forward itself is made per base class."""

    def _forward_with_heads(self, arguments: dict[str, Any]) -> ModelOutput | tuple:
        labels = arguments.pop("labels", None)
        num_items_in_batch = arguments.pop("num_items_in_batch", None)
        return_dict = arguments.pop("return_dict", None)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        # The AutoDeco loss trains the heads only, so with labels the base needs no graph.
        with torch.set_grad_enabled(torch.is_grad_enabled() and labels is None):
            outputs, hidden_states = self._run_base(arguments)
        predicted = self.heads(hidden_states.detach(), outputs.logits.detach())
        loss = None
        if labels is not None:
            kept = kept_positions(arguments.get("logits_to_keep", 0))
            loss = _loss(outputs.logits.detach(), predicted, labels, kept, num_items_in_batch)
        outputs = with_predictions(outputs, predicted.temperature, predicted.top_p, loss)
        return outputs if return_dict else outputs.to_tuple()

    def _run_base(self, arguments: dict[str, Any]) -> tuple[ModelOutput, torch.Tensor]:
        """Run the base; return its output and the LM head's input, row for row."""
        forward = self._base_class.forward
        if torch.compiler.is_compiling():
            return self._run_base_compiled(forward, arguments)
        with capture_lm_head_input(self.get_output_embeddings()) as captured:
            outputs = forward(self, **arguments, return_dict=True)
        if len(captured) != 1 or captured[0].shape[:-1] != outputs.logits.shape[:-1]:
            raise RuntimeError(
                f"autodeco_ext.AutoDecoModelForCausalLM: {self._base_class.__name__} must call"
                " its LM head once per forward, on the positions it returns logits"
                f" {list(outputs.logits.shape)} for, got inputs {[list(x.shape) for x in captured]}"
            )
        return outputs, captured[0]

    def _run_base_compiled(
        self, forward: Any, arguments: dict[str, Any]
    ) -> tuple[ModelOutput, torch.Tensor]:
        model_type = self.config.get_text_config().model_type
        if model_type not in LAST_HIDDEN_STATE_MODELS:
            raise NotImplementedError(
                "autodeco_ext.AutoDecoModelForCausalLM: under torch.compile the base must be one of"
                f" {sorted(LAST_HIDDEN_STATE_MODELS)} in this version, got {model_type}"
            )
        arguments = dict(arguments)
        wanted = arguments.pop("output_hidden_states", None)
        outputs = forward(self, **arguments, output_hidden_states=True, return_dict=True)
        kept = kept_positions(arguments.get("logits_to_keep", 0))
        hidden_states = outputs.hidden_states[-1][:, kept]
        if not wanted:
            fields = {name: value for name, value in outputs.items() if name != "hidden_states"}
            outputs = type(outputs)(**fields)
        return outputs, hidden_states


def _loss(
    logits: torch.Tensor,
    predicted: HeadOutput,
    labels: torch.Tensor,
    kept: slice | torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None,
) -> torch.Tensor:
    """The AutoDeco loss: the output at position t is scored on labels[t + 1]."""
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)[:, kept]  # [batch, positions]
    if shifted.shape != predicted.temperature.shape:
        raise ValueError(
            "autodeco_ext.AutoDecoModelForCausalLM.forward: labels must have the shape of"
            f" input_ids, got {list(labels.shape)} for predictions"
            f" {list(predicted.temperature.shape)}"
        )
    counted = shifted != -100
    targets = shifted[counted]
    loss = autodeco_loss(
        logits[counted].float(),
        predicted.temperature[counted],
        predicted.top_p[counted],
        targets,
        # As released: a part of the tokens that the base gets right anyway does not count.
        drop_uniform=torch.rand(targets.shape, device=targets.device),
        reduction="mean" if num_items_in_batch is None else "sum",
    ).loss
    return loss if num_items_in_batch is None else loss / num_items_in_batch

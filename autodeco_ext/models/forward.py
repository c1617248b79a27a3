"""AutoDecoModelForCausalLM's forward: the base's, the heads, with labels the loss."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from autodeco_ext._arguments import errors_named, item_count, require_bool, require_tensor
from autodeco_ext.linear_loss import DEFAULT_CHUNK_BYTES, linear_autodeco_loss, losses_of_heads
from autodeco_ext.losses import autodeco_loss
from autodeco_ext.models.heads import HeadOutput
from autodeco_ext.models.lm_head_input import (
    LAST_HIDDEN_STATE_MODELS,
    capture_lm_head_input,
    kept_positions,
    last_row,
)
from autodeco_ext.models.logits_transform import check_logits_transform, logits_transform
from autodeco_ext.models.outputs import with_loss_only, with_predictions
from autodeco_ext.reference import AutoDecoLoss

_OP = "AutoDecoModelForCausalLM.forward"


class HeadsForwardMixin:
    """Needs self.heads and self._base_class; forward itself is made per base class."""

    # Of linear_autodeco_loss. No field of a config: it belongs to the machine, not to the weights.
    max_chunk_bytes: int = DEFAULT_CHUNK_BYTES

    def _forward_with_heads(
        self,
        *,
        labels: torch.Tensor | None = None,
        num_items_in_batch: float | torch.Tensor | None = None,
        skip_logits: bool | None = None,
        return_dict: bool | None = None,
        **arguments: Any,
    ) -> ModelOutput | tuple:
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        shift_labels = arguments.pop("shift_labels", None)  # Trainer's, for sequence parallelism
        if shift_labels is not None:
            raise ValueError(
                f"autodeco_ext.{_OP}: shift_labels must be None (forward shifts labels itself),"
                f" got a {type(shift_labels).__name__}"
            )
        if skip_logits is None:
            skip_logits = labels is not None and self.heads.training
        require_bool(_OP, "skip_logits", skip_logits, "a bool or None")
        if labels is not None:
            require_tensor(_OP, "labels", labels)
            # The AutoDeco loss trains the heads only, so the base needs no graph.
            with torch.no_grad():
                outputs, hidden_states = self._run_base(arguments, one_row=skip_logits)
            logits_to_keep = arguments.get("logits_to_keep", 0)
            targets = _targets(labels, logits_to_keep, hidden_states)
            items = None  # checked here for both ways to the loss
            if num_items_in_batch is not None:
                items = item_count(_OP, num_items_in_batch, hidden_states.device)
        elif skip_logits:
            raise ValueError(
                f"autodeco_ext.{_OP}: skip_logits must be False without labels, got True"
            )
        else:
            outputs, hidden_states = self._run_base(arguments)
        if skip_logits:
            with _rows_placed(arguments):
                loss = self._loss_of_hidden_states(hidden_states, outputs, targets, items)
            outputs = with_loss_only(outputs, loss)
            return outputs if return_dict else outputs.to_tuple()
        loss = None
        with _rows_placed(arguments):
            predicted = self.heads(hidden_states.detach(), outputs.logits.detach())
            if labels is not None:
                losses = _losses_of_logits(outputs.logits.detach(), predicted, targets, items)
                loss = losses_of_heads(self.heads, losses).loss
        outputs = with_predictions(outputs, predicted.temperature, predicted.top_p, loss)
        return outputs if return_dict else outputs.to_tuple()

    def _loss_of_hidden_states(
        self,
        hidden_states: torch.Tensor,
        outputs: ModelOutput,
        targets: torch.Tensor,
        items: torch.Tensor | None,
    ) -> torch.Tensor:
        """outputs hold the base's logits of the last row, to see whether ours are the same."""
        transform = logits_transform(self)
        check_logits_transform(self, transform, last_row(hidden_states), outputs.logits[:1])
        return linear_autodeco_loss(
            hidden_states,
            self.get_output_embeddings(),
            self.heads,
            targets,
            logits_transform=transform,
            max_chunk_bytes=self.max_chunk_bytes,
            num_items_in_batch=items,
        ).loss

    def _run_base(
        self, arguments: dict[str, Any], *, one_row: bool = False
    ) -> tuple[ModelOutput, torch.Tensor]:
        """Run the base; return its output and the LM head's input, row for row.

        one_row: the logits in the output are those of the last_row of that input only.
        """
        forward = self._base_class.forward
        if torch.compiler.is_compiling():
            return self._run_base_compiled(forward, arguments, one_row)
        with capture_lm_head_input(self.get_output_embeddings(), one_row=one_row) as captured:
            outputs = forward(self, **arguments, return_dict=True)
        rows = [last_row(inputs) if one_row else inputs for inputs in captured]
        if len(rows) != 1 or rows[0].shape[:-1] != outputs.logits.shape[:-1]:
            raise RuntimeError(
                f"autodeco_ext.AutoDecoModelForCausalLM: {self._base_class.__name__} must call"
                " its LM head once per forward, on the positions it returns logits"
                f" {list(outputs.logits.shape)} for, got inputs {[list(x.shape) for x in rows]}"
            )
        return outputs, captured[0]

    def _run_base_compiled(
        self, forward: Any, arguments: dict[str, Any], one_row: bool
    ) -> tuple[ModelOutput, torch.Tensor]:
        model_type = self.config.get_text_config().model_type
        if model_type not in LAST_HIDDEN_STATE_MODELS:
            raise NotImplementedError(
                "autodeco_ext.AutoDecoModelForCausalLM: under torch.compile the base must be one of"
                f" {sorted(LAST_HIDDEN_STATE_MODELS)} in this version, got {model_type}"
            )
        arguments = dict(arguments)
        wanted = arguments.pop("output_hidden_states", None)
        kept = kept_positions(arguments.get("logits_to_keep", 0))
        if one_row:
            arguments["logits_to_keep"] = _kept_columns(arguments)[-1:]
        outputs = forward(self, **arguments, output_hidden_states=True, return_dict=True)
        hidden_states = outputs.hidden_states[-1][:, kept]
        if not wanted:
            fields = {name: value for name, value in outputs.items() if name != "hidden_states"}
            outputs = type(outputs)(**fields)
        return outputs, hidden_states


def _targets(
    labels: torch.Tensor, logits_to_keep: int | torch.Tensor, hidden_states: torch.Tensor
) -> torch.Tensor:
    """[batch, positions]: the output at position t is scored on labels[t + 1]."""
    targets = None
    if labels.dim() == 2:
        kept = kept_positions(logits_to_keep)
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)[:, kept]
    if targets is None or targets.shape != hidden_states.shape[:-1]:
        raise ValueError(
            f"autodeco_ext.{_OP}: labels must have the shape of"
            f" input_ids, got {list(labels.shape)} for predictions"
            f" {list(hidden_states.shape[:-1])}"
        )
    return targets


def _kept_columns(arguments: dict[str, Any]) -> torch.Tensor:
    """[positions]: the columns of forward's input that logits are returned for."""
    given = arguments.get("input_ids")
    given = arguments["inputs_embeds"] if given is None else given
    columns = torch.arange(given.shape[1], device=given.device)
    return columns[kept_positions(arguments.get("logits_to_keep", 0))]


@contextlib.contextmanager
def _rows_placed(arguments: dict[str, Any]) -> Iterator[None]:
    """Gives errors of heads and losses this op's name, and places in forward's input for rows."""
    try:
        with errors_named(_OP, predicted=HeadOutput._fields):
            yield
    except ValueError as error:
        found = re.fullmatch(rf"autodeco_ext\.{re.escape(_OP)}: (.*) in row (\d+)", str(error))
        if found is None:
            raise
        positions = _kept_columns(arguments).tolist()
        sequence, place = divmod(int(found[2]), len(positions))
        position = positions[place]
        where = f"sequence {sequence}, position {position}"
        if found[1].startswith("labels "):  # of the next position
            where = f"labels[{sequence}, {position + 1}]"
        raise ValueError(f"autodeco_ext.{_OP}: {found[1]} in {where}") from None


def _losses_of_logits(
    logits: torch.Tensor,
    predicted: HeadOutput,
    targets: torch.Tensor,
    items: torch.Tensor | None,
) -> AutoDecoLoss:
    if items is None:
        return autodeco_loss(logits, *predicted, targets)
    sums = autodeco_loss(logits, *predicted, targets, reduction="sum")
    return AutoDecoLoss(*(part / items for part in sums))

"""Output types: the base model's own, with the fields temperature and top_p added."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers.utils import ModelOutput


def with_predictions(
    outputs: ModelOutput,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    loss: torch.Tensor | None,
) -> ModelOutput:
    """Return the outputs as their AutoDeco type, with the predictions and, if given, the loss."""
    fields = {**outputs, "temperature": temperature, "top_p": top_p}
    if loss is not None:
        fields["loss"] = loss
    return output_type(type(outputs))(**fields)


def with_loss_only(outputs: ModelOutput, loss: torch.Tensor) -> ModelOutput:
    """Return the outputs as their AutoDeco type, with the loss and without logits."""
    fields = {name: value for name, value in outputs.items() if name != "logits"}
    return output_type(type(outputs))(**fields | {"loss": loss})


# A dict and no functools.cache: dynamo traces through the latter and would make the class anew.
_types: dict[type[ModelOutput], type[ModelOutput]] = {}


def output_type(base: type[ModelOutput]) -> type[ModelOutput]:
    """Return the dataclass AutoDeco<Base>: base's fields, then temperature and top_p."""
    if base not in _types:
        predictions = ("temperature", "top_p")
        _types[base] = dataclasses.make_dataclass(
            f"AutoDeco{base.__name__}",
            [(name, torch.FloatTensor | None, None) for name in predictions],
            bases=(base,),
            namespace={
                "__module__": __name__,
                "__doc__": f"{base.__name__} with temperature, top_p: float32 [batch, positions].",
                "__reduce__": _reduce,
            },
        )
    return _types[base]


def _reduce(self: ModelOutput) -> tuple:
    # Made on demand, so pickle cannot find the class by its name.
    return _rebuild, (type(self).__bases__[0], dict(self.items()))


def _rebuild(base: type[ModelOutput], fields: dict[str, Any]) -> ModelOutput:
    return output_type(base)(**fields)

"""Output types: the base model's own, with the fields temperature and top_p added."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from transformers.utils import ModelOutput


def with_predictions(
    outputs: ModelOutput, temperature: torch.Tensor, top_p: torch.Tensor
) -> ModelOutput:
    """Return the outputs as their AutoDeco type, with the two predictions as last fields."""
    return output_type(type(outputs))(**outputs, temperature=temperature, top_p=top_p)


@functools.cache
def output_type(base: type[ModelOutput]) -> type[ModelOutput]:
    """Return the dataclass AutoDeco<Base>: base's fields, then temperature and top_p."""
    return dataclasses.make_dataclass(
        f"AutoDeco{base.__name__}",
        [
            ("temperature", torch.FloatTensor | None, None),
            ("top_p", torch.FloatTensor | None, None),
        ],
        bases=(base,),
        namespace={
            "__module__": __name__,
            "__doc__": f"{base.__name__} with temperature and top_p, float32 [batch, positions].",
            "__reduce__": _reduce,
        },
    )


def _reduce(self: ModelOutput) -> tuple:
    # Made on demand, so pickle cannot find the class by its name.
    return _rebuild, (type(self).__bases__[0], dict(self.items()))


def _rebuild(base: type[ModelOutput], fields: dict[str, Any]) -> ModelOutput:
    return output_type(base)(**fields)

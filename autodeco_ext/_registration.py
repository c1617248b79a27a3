"""Fake kernels: what torch.compile and opcheck need to know about the shapes of our ops.

They refuse what csrc/ops/checks.cpp refuses, so that a graph fails when it is traced and not when
it runs. Importing this module loads the extension, which registers the schemas and the CPU kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from autodeco_ext import _load  # noqa: F401  (the schemas must exist before their fakes)

_NUM_STATS = 4
_MAX_VOCAB = 1 << 20
_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check_layout(op: str, name: str, tensor: torch.Tensor) -> None:
    prefix = f"autodeco_ext.{op}: {name} must have"
    if tensor.ndim == 0:
        raise ValueError(f"{prefix} at least one dimension, got 0")
    if tensor.shape[-1] == 0:
        raise ValueError(f"{prefix} at least one column, got shape {list(tensor.shape)}")
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{prefix} a vocabulary stride of 1, got {tensor.stride(-1)} (call .contiguous() first)"
        )


def _check_logits(op: str, logits: torch.Tensor, max_vocab: int | None = _MAX_VOCAB) -> None:
    _check_layout(op, "logits", logits)
    if logits.dtype not in _LOGITS_DTYPES:
        raise ValueError(
            f"autodeco_ext.{op}: logits must be float32, bfloat16 or float16, got {logits.dtype}"
        )
    if max_vocab is not None and logits.shape[-1] > max_vocab:
        raise ValueError(
            f"autodeco_ext.{op}: logits must have at most {max_vocab} columns, "
            f"got {logits.shape[-1]}"
        )


def _sample_shapes(logits: torch.Tensor, parameters: tuple) -> tuple[list[int], list[int]]:
    _check_logits("sample", logits)
    *_, num_samples, _check = parameters
    rows = list(logits.shape[:-1])
    return rows, rows if num_samples is None else [*rows, num_samples]


@torch.library.register_fake("autodeco_ext::sample")
def _(logits: torch.Tensor, *parameters: Any) -> torch.Tensor:
    _, per_sample = _sample_shapes(logits, parameters)
    return logits.new_empty(per_sample, dtype=torch.int64)


@torch.library.register_fake("autodeco_ext::sample_with_info")
def _(logits: torch.Tensor, *parameters: Any) -> tuple[torch.Tensor, ...]:
    rows, per_sample = _sample_shapes(logits, parameters)
    return (
        logits.new_empty(per_sample, dtype=torch.int64),
        logits.new_empty(per_sample, dtype=torch.float32),
        logits.new_empty(per_sample, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.bool),
    )


@torch.library.register_fake("autodeco_ext::filter_logits_out")
def _(logits: torch.Tensor, *parameters: Any) -> None:
    out = parameters[-1]
    _check_logits("filter_logits", logits)
    _check_layout("filter_logits", "out", out)
    if out.dtype != torch.float32:
        raise ValueError(f"autodeco_ext.filter_logits: out must be float32, got {out.dtype}")
    if out.shape != logits.shape:
        raise ValueError(
            f"autodeco_ext.filter_logits: out must have shape {list(logits.shape)}, "
            f"got {list(out.shape)}"
        )


@torch.library.register_fake("autodeco_ext::kept_indices")
def _(logits: torch.Tensor, *parameters: Any) -> tuple[torch.Tensor, torch.Tensor]:
    _check_logits("kept_indices", logits)
    *_, capacity, _check = parameters
    if capacity is None:  # then the number of ids is known when the op has run
        capacity = torch.library.get_ctx().new_dynamic_size()
    rows = math.prod(logits.shape[:-1])
    return (
        logits.new_empty([rows + 1], dtype=torch.int64),
        logits.new_empty([capacity], dtype=torch.int32),
    )


@torch.library.register_fake("autodeco_ext::distribution_stats")
def _(
    logits: torch.Tensor, temperature: torch.Tensor | None, temperature_value: float
) -> torch.Tensor:
    _check_logits("distribution_stats", logits)
    return logits.new_empty([*logits.shape[:-1], _NUM_STATS], dtype=torch.float32)


def _check_floats(name: str, tensor: torch.Tensor | None) -> torch.Tensor:
    prefix = f"autodeco_ext.predict_parameters: {name} must be"
    if tensor is None:
        raise ValueError(f"{prefix} given with the product of its head, got None")
    if tensor.dtype != torch.float32:
        raise ValueError(f"{prefix} float32, got {tensor.dtype}")
    return tensor


def _check_head(head: str, rows: list[int], product: torch.Tensor | None, *layers: Any) -> None:
    """The layers are first_bias, second_weight and second_bias."""
    if product is None:
        return
    if product.ndim == 0:
        raise ValueError(
            f"autodeco_ext.predict_parameters: {head}_product must have at least one dimension, "
            "got 0"
        )
    width = product.shape[-1]
    names = ("product", "first_bias", "second_weight", "second_bias")
    shapes = ([*rows, width], [width], [1, width], [1])
    for name, shape, given in zip(names, shapes, (product, *layers), strict=True):
        tensor = _check_floats(f"{head}_{name}", given)
        if list(tensor.shape) != shape or not tensor.is_contiguous():
            raise ValueError(
                f"autodeco_ext.predict_parameters: {head}_{name} must be contiguous with shape "
                f"{shape}, got shape {list(tensor.shape)}"
            )


@torch.library.register_fake("autodeco_ext::predict_parameters")
def _(
    logits: torch.Tensor,
    temperature_product: torch.Tensor | None,
    temperature_first_bias: torch.Tensor | None,
    temperature_second_weight: torch.Tensor | None,
    temperature_second_bias: torch.Tensor | None,
    top_p_product: torch.Tensor | None,
    top_p_feature_weight: torch.Tensor | None,
    top_p_first_bias: torch.Tensor | None,
    top_p_second_weight: torch.Tensor | None,
    top_p_second_bias: torch.Tensor | None,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_logits("predict_parameters", logits, max_vocab=None)
    rows = list(logits.shape[:-1])
    _check_head(
        "temperature",
        rows,
        temperature_product,
        temperature_first_bias,
        temperature_second_weight,
        temperature_second_bias,
    )
    _check_head(
        "top_p", rows, top_p_product, top_p_first_bias, top_p_second_weight, top_p_second_bias
    )
    if top_p_product is not None:
        weight = _check_floats("top_p_feature_weight", top_p_feature_weight)
        prefix = "autodeco_ext.predict_parameters: top_p_feature_weight must have"
        shapes = [[top_p_product.shape[-1], columns] for columns in (1, 1 + _NUM_STATS)]
        if list(weight.shape) not in shapes:
            raise ValueError(f"{prefix} shape {shapes[0]} or {shapes[1]}, got {list(weight.shape)}")
        if weight.shape[1] > 1 and weight.stride(1) != 1:
            raise ValueError(f"{prefix} a column stride of 1, got {weight.stride(1)}")
        if weight.shape[1] > 1:
            _check_logits("predict_parameters", logits)
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.float32)


def _check_loss_inputs(op: str, logits: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """The tensors have one entry per row (in the last dimensions) and come with their dtype."""
    _check_logits(op, logits)
    rows = list(logits.shape[:-1])
    leading = {"counted": [2], "loss_gradients": [2]}
    dtypes = {"labels": torch.int64, "counted": torch.bool}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        shape, dtype = leading.get(name, []) + rows, dtypes.get(name, torch.float32)
        prefix = f"autodeco_ext.{op}: {name} must"
        if tensor.dtype != dtype:
            raise ValueError(f"{prefix} be {str(dtype).removeprefix('torch.')}, got {tensor.dtype}")
        if list(tensor.shape) != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{prefix} be contiguous with shape {shape}, got shape {list(tensor.shape)}"
            )


@torch.library.register_fake("autodeco_ext::autodeco_loss_rows")
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    labels: torch.Tensor,
    drop_uniform: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_loss_inputs(
        "autodeco_loss",
        logits,
        temperature=temperature,
        top_p=top_p,
        labels=labels,
        drop_uniform=drop_uniform,
    )
    rows = list(logits.shape[:-1])
    return (
        logits.new_empty([2, *rows], dtype=torch.float32),
        logits.new_empty([3, *rows], dtype=torch.float32),
        logits.new_empty([2, *rows], dtype=torch.bool),
    )


@torch.library.register_fake("autodeco_ext::autodeco_loss_logits_gradient")
def _(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    labels: torch.Tensor,
    counted: torch.Tensor,
    loss_gradients: torch.Tensor,
    *options: Any,
) -> torch.Tensor:
    _check_loss_inputs(
        "autodeco_loss_logits_gradient",
        logits,
        temperature=temperature,
        top_p=top_p,
        labels=labels,
        counted=counted,
        loss_gradients=loss_gradients,
    )
    return logits.new_empty(logits.shape)

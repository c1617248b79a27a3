"""Turns what a caller passes, scalars or per-row tensors, into what the registered ops take.

Only what needs Python is checked here: scalar values, and shapes that must be broadcast. Shapes,
dtypes and layouts of tensors are checked in csrc/ops.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch

_FLOAT32_MAX = torch.finfo(torch.float32).max
# Values from here to 0 become -0.0 in float32, which is the greedy temperature.
_ROUNDS_TO_ZERO = -(2.0**-150)
_INT64 = 1 << 64
_INT64_MAX = (1 << 63) - 1

Pair = tuple[torch.Tensor | None, float | int]


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a registered op; our own messages arrive as ValueError instead of RuntimeError.

    The stable ABI cannot raise typed exceptions. Inside a compiled graph the RuntimeError stays.
    """
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return op(*arguments)
    except RuntimeError as error:
        message = str(error)
        if message.startswith("autodeco_ext."):
            raise ValueError(message.splitlines()[0]) from None
        raise


def require_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"autodeco_ext.{op}: {name} must be a torch.Tensor, got {type(value).__name__}"
        )


def require_supported_device(op: str, logits: torch.Tensor) -> None:
    if logits.device.type not in ("cpu", "meta"):
        raise ValueError(
            f"autodeco_ext.{op}: logits must be on the CPU in this version (its CUDA kernels are "
            f"not written yet), got {logits.device}"
        )


def require_no_grad(op: str, logits: torch.Tensor) -> None:
    if logits.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"autodeco_ext.{op}: logits must not require grad (the op has no gradient: detach "
            f"them), got requires_grad=True"
        )


def per_row(
    op: str, name: str, value: torch.Tensor, dtype: torch.dtype, logits: torch.Tensor
) -> torch.Tensor:
    """One contiguous value per row, `logits.shape[:-1]`."""
    rows = logits.shape[:-1]
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"autodeco_ext.{op}: {name} must be real numbers, got {value.dtype}")
    if dtype == torch.int64 and value.is_floating_point():
        raise TypeError(f"autodeco_ext.{op}: {name} must be integers, got {value.dtype}")
    if value.device != logits.device:
        raise ValueError(
            f"autodeco_ext.{op}: {name} must be on {logits.device}, got {value.device}"
        )
    if value.shape != rows:
        if value.ndim > len(rows) or any(
            size not in (1, row_size)
            for size, row_size in zip(reversed(value.shape), reversed(rows), strict=False)
        ):
            raise ValueError(
                f"autodeco_ext.{op}: {name} must have a shape that broadcasts to {list(rows)}, "
                f"got {list(value.shape)}"
            )
        value = value.expand(rows)
    # No op has a gradient with respect to its parameters.
    return value.detach().to(dtype).contiguous()


def float_parameter(op: str, name: str, value: object, logits: torch.Tensor) -> Pair:
    if isinstance(value, torch.Tensor):
        return per_row(op, name, value, torch.float32, logits), 0.0
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"autodeco_ext.{op}: {name} must be a number or a tensor, got {type(value).__name__}"
        )
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"autodeco_ext.{op}: {name} must be a number, got nan")
    return None, number


def integer_parameter(op: str, name: str, value: object, logits: torch.Tensor) -> Pair:
    if isinstance(value, torch.Tensor):
        return per_row(op, name, value, torch.int64, logits), 0
    return None, integer(op, name, value)


def integer(op: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"autodeco_ext.{op}: {name} must be an integer or a tensor, got {type(value).__name__}"
        )
    return int(value)


def temperature_parameter(op: str, value: object, logits: torch.Tensor) -> Pair:
    pair = float_parameter(op, "temperature", value, logits)
    if pair[0] is None and not _ROUNDS_TO_ZERO <= pair[1] <= _FLOAT32_MAX:
        raise ValueError(f"autodeco_ext.{op}: temperature must be finite and >= 0, got {value}")
    return pair


def filter_parameters(
    op: str,
    logits: torch.Tensor,
    temperature: object,
    top_p: object,
    top_k: object,
    min_p: object,
    valid_vocab: object,
) -> tuple[Any, ...]:
    """The ten arguments that `sample` and `filter_logits` share, in schema order."""
    top_k_pair = integer_parameter(op, "top_k", 0 if top_k is None else top_k, logits)
    if top_k_pair[0] is None and top_k_pair[1] < 0:
        raise ValueError(f"autodeco_ext.{op}: top_k must be >= 0, got {top_k}")
    vocab = logits.shape[-1] if logits.ndim else 0
    valid_pair = integer_parameter(
        op, "valid_vocab", vocab if valid_vocab is None else valid_vocab, logits
    )
    if valid_vocab is not None and valid_pair[0] is None and valid_pair[1] < 1:
        raise ValueError(f"autodeco_ext.{op}: valid_vocab must be >= 1, got {valid_vocab}")
    return (
        *temperature_parameter(op, temperature, logits),
        *float_parameter(op, "top_p", top_p, logits),
        top_k_pair[0],
        min(top_k_pair[1], _INT64_MAX),
        *float_parameter(op, "min_p", 0.0 if min_p is None else min_p, logits),
        valid_pair[0],
        min(valid_pair[1], _INT64_MAX),
    )


def _wrapped(value: int) -> int:
    """The int64 with the bit pattern of `value` modulo 2^64."""
    value %= _INT64
    return value - _INT64 if value > _INT64_MAX else value


def _is_scalar(seed: object) -> bool:
    """A tensor without dimensions counts as one: row r uses (seed, offset + r)."""
    return seed is not None and (not isinstance(seed, torch.Tensor) or seed.ndim == 0)


def _row_numbers(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.shape[:-1]
    return torch.arange(rows.numel(), device=logits.device).reshape(rows)


def seed_parameters(
    op: str,
    logits: torch.Tensor,
    seed: object,
    offset: object,
    generator: torch.Generator | None,
) -> tuple[Any, ...]:
    """(seed, seed_value, offset, offset_value), following semantics.md, section 1.7."""
    if seed is not None and generator is not None:
        raise ValueError(
            f"autodeco_ext.{op}: seed must be None when a generator is given, got both"
        )
    rows = logits.shape[:-1]
    offset_tensor, offset_value = integer_parameter(
        op, "offset", 0 if offset is None else offset, logits
    )
    offset_value = _wrapped(offset_value)
    if isinstance(offset, torch.Tensor) and offset.ndim == 0 and _is_scalar(seed):
        offset_tensor = offset_tensor + _row_numbers(logits)
    if seed is None:
        seed_tensor = torch.randint(
            -_INT64_MAX - 1, _INT64_MAX, rows, generator=generator, device=logits.device
        )
        return seed_tensor, 0, offset_tensor, offset_value
    if isinstance(seed, torch.Tensor) and seed.ndim == 0 and offset_tensor is None:
        offset_tensor = _row_numbers(logits) + offset_value
    seed_tensor, seed_value = integer_parameter(op, "seed", seed, logits)
    return seed_tensor, _wrapped(seed_value), offset_tensor, offset_value

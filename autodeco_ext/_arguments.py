"""Turns what a caller passes, scalars or per-row tensors, into what the registered ops take.

Only what needs Python is checked here: scalar values, and shapes that must be broadcast. Shapes,
dtypes and layouts of tensors are checked in csrc/ops.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from autodeco_ext._load import why_no_cuda

WHY_NO_CUDA: str = why_no_cuda()  # empty if CUDA tensors are taken

FLOAT32_MAX = torch.finfo(torch.float32).max
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


@contextlib.contextmanager
def errors_named(
    op: str, rows: torch.Tensor | None = None, predicted: Collection[str] = ()
) -> Iterator[None]:
    """Gives an error of another op that runs inside this name; other errors are left as they are.

    rows: which rows of the caller's those that the other op counts are.
    predicted: arguments of the other op that heads made of the caller's hidden_states.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        text, num_named = re.subn(r"^autodeco_ext\.\w+:", f"autodeco_ext.{op}:", str(error))
        if num_named == 0:
            raise
        found = re.search(r" in row (\d+)$", text)
        if rows is not None and found is not None:
            text = f"{text[: found.start()]} in row {int(rows[int(found[1])])}"
        for name in predicted:
            wanted = f": hidden_states must give a {name} that is "
            text = text.replace(f": {name} must be ", wanted)
        raise type(error)(text) from None


def require_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"autodeco_ext.{op}: {name} must be a torch.Tensor, got {type(value).__name__}"
        )
    if value.layout != torch.strided:
        raise TypeError(f"autodeco_ext.{op}: {name} must be a dense tensor, got {value.layout}")


def require_supported_device(op: str, logits: torch.Tensor) -> None:
    device = logits.device.type
    if device in ("cpu", "meta") or (device == "cuda" and not WHY_NO_CUDA):
        return
    if device != "cuda":
        raise ValueError(
            f"autodeco_ext.{op}: logits must be on the CPU or CUDA, got {logits.device}"
        )
    raise ValueError(
        f"autodeco_ext.{op}: logits must be on the CPU, got {logits.device}: {WHY_NO_CUDA}"
    )


def require_no_grad(op: str, tensor: torch.Tensor, name: str = "logits") -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"autodeco_ext.{op}: {name} must not require grad (the op has no gradient: detach "
            f"it), got requires_grad=True"
        )


def mark_written(tensor: torch.Tensor) -> None:
    """Tells autograd that the values it may have saved are gone, as torch's own ops do."""
    if not torch.compiler.is_compiling() and not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _require_kind(
    op: str, name: str, value: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    is_integer = dtype == torch.int64
    is_real = value.dtype != torch.bool and not value.is_complex()
    if not is_real or (is_integer and value.is_floating_point()):
        wanted = "integers" if is_integer else "real numbers"
        raise TypeError(f"autodeco_ext.{op}: {name} must be {wanted}, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"autodeco_ext.{op}: {name} must be on {device}, got {value.device}")


def row_values(
    op: str,
    name: str,
    value: object,
    dtype: torch.dtype,
    shape: torch.Size,
    device: torch.device,
) -> torch.Tensor:
    """One contiguous value per row, exactly of that shape; gradients flow through the cast."""
    if (
        type(value) is torch.Tensor
        and value.dtype == dtype
        and value.shape == shape
        and value.device == device
        and value.layout == torch.strided
        and value.is_contiguous()
    ):
        return value  # as in per_row
    require_tensor(op, name, value)
    _require_kind(op, name, value, dtype, device)
    if value.shape != shape:
        raise ValueError(
            f"autodeco_ext.{op}: {name} must have shape {list(shape)}, got {list(value.shape)}"
        )
    return value.to(dtype).contiguous()


def per_row(
    op: str, name: str, value: torch.Tensor, dtype: torch.dtype, logits: torch.Tensor
) -> torch.Tensor:
    """One contiguous value per row, `logits.shape[:-1]`."""
    rows = logits.shape[:-1]
    if (
        value.dtype == dtype
        and value.shape == rows
        and value.device == logits.device
        and not value.requires_grad
        and value.is_contiguous()
    ):
        return value  # the calls below, which change nothing here, cost three times the checks
    _require_kind(op, name, value, dtype, logits.device)
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


def _scalar(value: float | int, dtype: torch.dtype, logits: torch.Tensor) -> Pair:
    """A scalar costs no tensor, except in a compiled graph.

    There a scalar argument of an op is a constant: one that changes from call to call would compile
    the graph anew each time. torch keeps a number variable only in arithmetic with a tensor, and
    only while nothing compares it, so numbers are checked in eager alone; the kernels find bad
    values in any case.
    """
    if torch.compiler.is_compiling():
        ones = torch.ones(logits.shape[:-1], dtype=dtype, device=logits.device)
        return ones * value, 0
    return None, value


def number(op: str, name: str, value: object, kind: str = "a number or a tensor") -> float:
    # The abstract class takes longer than everything else here.
    if type(value) is not float and (
        isinstance(value, bool) or not isinstance(value, numbers.Real)
    ):
        raise TypeError(f"autodeco_ext.{op}: {name} must be {kind}, got {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:
        raise ValueError(
            f"autodeco_ext.{op}: {name} must be in the range of a float, got a larger integer"
        ) from None
    if result != result:  # NaN; unlike math.isnan this can be traced when the value changes
        raise ValueError(f"autodeco_ext.{op}: {name} must be a number, got nan")
    return result


def integer(op: str, name: str, value: object, kind: str = "an integer or a tensor") -> int:
    if type(value) is not int and (
        isinstance(value, bool) or not isinstance(value, numbers.Integral)
    ):
        raise TypeError(f"autodeco_ext.{op}: {name} must be {kind}, got {type(value).__name__}")
    return int(value)


def int64(op: str, name: str, value: object) -> int:
    result = integer(op, name, value, "an integer")
    if not -_INT64_MAX - 1 <= result <= _INT64_MAX:
        raise ValueError(f"autodeco_ext.{op}: {name} must be in the range of int64, got {result}")
    return result


def item_count(op: str, value: object, device: torch.device) -> torch.Tensor:
    """num_items_in_batch as a float32 tensor without dimensions, 1 at least.

    The value of a tensor is not looked at, which would stall a GPU.
    """
    name = "num_items_in_batch"
    if isinstance(value, torch.Tensor):
        _require_kind(op, name, value, torch.float32, value.device)
        if value.numel() != 1:
            raise ValueError(
                f"autodeco_ext.{op}: {name} must have one element, got {value.numel()}"
            )
        if value.is_meta and device.type != "meta":
            raise ValueError(f"autodeco_ext.{op}: {name} must hold a value, got a meta tensor")
        items = value.detach().reshape(()).to(device, torch.float32)
    elif torch.compiler.is_compiling():  # see _scalar
        items = torch.ones((), device=device) * value
    else:
        count = number(op, name, value)
        if not 0 <= count < math.inf:
            raise ValueError(f"autodeco_ext.{op}: {name} must be finite and >= 0, got {value}")
        items = torch.tensor(count, dtype=torch.float32, device=device)
    return items.clamp(min=1)


def sample_count(op: str, num_samples: object) -> int | None:
    if num_samples is None:
        return None
    count = integer(op, "num_samples", num_samples, "an integer or None")
    # The number of a sample is one 32-bit word of the random counter.
    if not 1 <= count < 1 << 32:
        raise ValueError(f"autodeco_ext.{op}: num_samples must be in [1, 2^32 - 1], got {count}")
    return count


def id_capacity(op: str, capacity: object) -> int | None:
    if capacity is None:
        return None
    size = integer(op, "capacity", capacity, "an integer or None")
    if size < 0:
        raise ValueError(f"autodeco_ext.{op}: capacity must be >= 0, got {size}")
    return size


def checks_rows(op: str, check: object, logits: torch.Tensor) -> bool:
    """None is True on the CPU; on CUDA, where looking stalls the device, False."""
    if check is None:
        return logits.device.type != "cuda"
    return require_bool(op, "check", check, "a bool or None")


def require_bool(op: str, name: str, value: object, kind: str = "a bool") -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError(f"autodeco_ext.{op}: {name} must be {kind}, got {value!r}")


def float_parameter(op: str, name: str, value: object, logits: torch.Tensor) -> Pair:
    if isinstance(value, torch.Tensor):
        return per_row(op, name, value, torch.float32, logits), 0.0
    if not torch.compiler.is_compiling():
        value = number(op, name, value)
    return _scalar(value, torch.float32, logits)


def integer_parameter(
    op: str, name: str, value: object, logits: torch.Tensor, lowest: int = 0
) -> Pair:
    if isinstance(value, torch.Tensor):
        return per_row(op, name, value, torch.int64, logits), 0
    result = integer(op, name, value)
    if result < lowest:
        raise ValueError(f"autodeco_ext.{op}: {name} must be >= {lowest}, got {value}")
    return _scalar(min(result, _INT64_MAX), torch.int64, logits)


def temperature_parameter(op: str, value: object, logits: torch.Tensor) -> Pair:
    if (
        not torch.compiler.is_compiling()
        and not isinstance(value, torch.Tensor)
        and not (_ROUNDS_TO_ZERO <= number(op, "temperature", value) <= FLOAT32_MAX)
    ):
        raise ValueError(f"autodeco_ext.{op}: temperature must be finite and >= 0, got {value}")
    return float_parameter(op, "temperature", value, logits)


def filter_parameters(
    op: str,
    logits: torch.Tensor,
    temperature: object,
    top_p: object,
    top_k: object,
    min_p: object,
    valid_vocab: object,
) -> tuple[Any, ...]:
    """The ten arguments that every op with filters takes, in schema order."""
    off_k, off_p, all_columns = (None, 0), (None, 0.0), (None, _INT64_MAX)
    return (
        *temperature_parameter(op, temperature, logits),
        *float_parameter(op, "top_p", top_p, logits),
        *(off_k if top_k is None else integer_parameter(op, "top_k", top_k, logits)),
        *(off_p if min_p is None else float_parameter(op, "min_p", min_p, logits)),
        *(
            all_columns
            if valid_vocab is None
            else integer_parameter(op, "valid_vocab", valid_vocab, logits, lowest=1)
        ),
    )


def _bit_pattern(op: str, name: str, value: object) -> int | torch.Tensor:
    """A tensor as it is; an integer as the int64 with its bit pattern modulo 2^64."""
    if isinstance(value, torch.Tensor):
        return value
    number = integer(op, name, value)
    if -_INT64_MAX <= number <= _INT64_MAX:
        return number
    number %= _INT64
    return number - _INT64 if number > _INT64_MAX else number


def _row_numbers_are_added_here(seed: int | torch.Tensor, offset: int | torch.Tensor) -> bool:
    """Whether this is row r's (seed, offset + r) in a form that the op cannot add r to.

    A tensor without dimensions counts as a scalar; for compiled graphs see `_scalar`.
    """
    tensors = [value for value in (seed, offset) if isinstance(value, torch.Tensor)]
    if any(tensor.ndim > 0 for tensor in tensors):
        return False
    return bool(tensors) or torch.compiler.is_compiling()


def draw_seeds(op: str, logits: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One seed per row from a torch generator, or from torch's own."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"autodeco_ext.{op}: generator must be a torch.Generator, got {generator!r}"
        )
    if generator is not None and generator.device.type != logits.device.type != "meta":
        raise ValueError(
            f"autodeco_ext.{op}: generator must be on {logits.device}, got {generator.device}"
        )
    # torch's overload with a generator, also one that is None, takes no dynamic shapes.
    given = {} if generator is None else {"generator": generator}
    return torch.randint(
        -_INT64_MAX - 1, _INT64_MAX, logits.shape[:-1], device=logits.device, **given
    )


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
    if seed is None:
        seed = draw_seeds(op, logits, generator)
    seed = _bit_pattern(op, "seed", seed)
    offset = _bit_pattern(op, "offset", 0 if offset is None else offset)
    if _row_numbers_are_added_here(seed, offset):
        offset = offset + torch.arange(rows.numel(), device=logits.device).reshape(rows)
        if isinstance(seed, int):
            seed = torch.full(rows, seed, dtype=torch.int64, device=logits.device)
    return (
        *integer_parameter(op, "seed", seed, logits, lowest=-_INT64_MAX - 1),
        *integer_parameter(op, "offset", offset, logits, lowest=-_INT64_MAX - 1),
    )

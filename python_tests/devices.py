"""Runs the ops on a device for tests that make CPU tensors.

A test calls `autodeco_ext.sample` with CPU tensors and judges CPU results. `OpsOnDevice` stands in
for the public op: it copies whole storages to the device, so that strides, alignment and shared
memory stay what they were, calls the op there, and brings back what it returned and wrote.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import autodeco_ext

# Every storage on the device lies between two fences of this many bytes 0xff: NaN for whoever reads
# there, and seen when it changes. A multiple of 128, so that alignment stays what it was.
_FENCE = 512
_FENCE_BYTE = 0xFF


def cuda_missing() -> str | None:
    """Why tests on CUDA cannot run here; None if they can."""
    info = autodeco_ext.build_info()
    if not info["cuda_built"]:
        return f"CUDA half {info['cuda_decision']}"
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a CPU build"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class _Moved(torch.autograd.Function):
    """Stands for a CPU tensor on the device; its gradient goes back to that tensor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, moved: Tensor) -> Tensor:
        return moved.view_as(moved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.cpu(), None


class _Copies:
    """The storages of one call: each is copied once, however many tensors look into it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.fenced: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}

    def tensor(self, value: Tensor) -> Tensor:
        if value.layout != torch.strided or value.device.type != "cpu":
            return value
        storage = value.untyped_storage()
        if storage._cdata not in self.fenced:
            inside = _bytes_of(storage)
            fenced = torch.full((2 * _FENCE + len(inside),), _FENCE_BYTE, dtype=torch.uint8)
            fenced[_FENCE : _FENCE + len(inside)] = inside
            self.fenced[storage._cdata] = (storage, fenced.to(self.device))
        fenced = self.fenced[storage._cdata][1]
        offset = value.storage_offset() + _FENCE // value.element_size()
        moved = torch.empty(0, dtype=value.dtype, device=self.device)
        moved.set_(fenced.untyped_storage(), offset, value.shape, value.stride())
        return _Moved.apply(value, moved) if value.requires_grad else moved

    def argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, nn.Module):
            return copy.deepcopy(value).to(self.device)
        return value

    def check_fences(self) -> None:
        for _, fenced in self.fenced.values():
            for fence in (fenced[:_FENCE], fenced[-_FENCE:]):
                assert (fence == _FENCE_BYTE).all(), "an op wrote outside the memory it was given"

    def bring_back(self, value: Tensor) -> None:
        """The whole storage: what the op wrote beside the tensor must be seen as well."""
        storage = value.untyped_storage()
        _bytes_of(storage).copy_(self.fenced[storage._cdata][1][_FENCE:-_FENCE])


def _on_cpu(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.cpu()
    if isinstance(result, tuple):  # the named tuples that ops return
        return type(result)(*(_on_cpu(value) for value in result))
    return result


class OpsOnDevice:
    """The public ops with CPU tensors in and out, run on a device.

    Invalid rows are an error unless the test says otherwise, as on the CPU: ops that can look at
    rows are called with check=True. The default of CUDA has tests of its own.
    """

    CHECKED = ("sample", "kept_indices", "decode_step", "autodeco_loss", "soft_top_p_loss")
    NAMES = (*CHECKED, "filter_logits", "distribution_stats")

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def wrap(self, op: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(op)
        def on_device(*arguments: Any, **named: Any) -> Any:
            if op.__name__ in self.CHECKED:
                named = {"check": True, **named}
            copies = _Copies(self.device)
            out = named.get("out")
            result = op(
                *(copies.argument(value) for value in arguments),
                **{key: copies.argument(value) for key, value in named.items()},
            )
            copies.check_fences()
            if not isinstance(out, Tensor):
                return _on_cpu(result)
            copies.bring_back(out)
            return out

        return on_device

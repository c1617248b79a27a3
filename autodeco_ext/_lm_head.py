"""The LM head of linear_autodeco_loss: a weight or a module, and what the base does after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from autodeco_ext._arguments import require_tensor

LogitsTransform = Callable[[Tensor], Tensor]


class LMHead:
    """logits = transform(lm_head(hidden_states)) of a chunk of rows, and its derivative."""

    def __init__(
        self,
        op: str,
        lm_head: Tensor | nn.Module,
        bias: Tensor | None,
        transform: LogitsTransform | None,
        hidden_states: Tensor,
    ) -> None:
        self.op, self.transform = op, transform
        self._gathered_by: list[torch.distributed.ProcessGroup | None] = []
        self._linear: list[Tensor] = []
        if isinstance(lm_head, nn.Module):
            if bias is not None:
                raise ValueError(
                    f"autodeco_ext.{op}: bias must be None with a module, which has its own, got"
                    " both"
                )
            parameters, self.project = list(lm_head.parameters()), lm_head
            self._vocab = getattr(lm_head, "out_features", None)
            self._gathered_by = _gathered_by(parameters)
            _check_module(op, lm_head, hidden_states, sharded=self.is_sharded)
            if not self.is_sharded and _is_linear(lm_head) and not _has_hooks(lm_head):
                self._linear = [one for one in (lm_head.weight, lm_head.bias) if one is not None]
        else:
            parameters = _check_weight(op, lm_head, bias, hidden_states)
            self.project, self._vocab = lambda hidden: F.linear(hidden, *parameters), len(lm_head)
            self._linear = parameters
        if transform is not None and not callable(transform):
            raise TypeError(
                f"autodeco_ext.{op}: logits_transform must be callable or None, got"
                f" {type(transform).__name__}"
            )
        self.parameters = [one for one in parameters if one.requires_grad]

    @property
    def vocab(self) -> int:
        if self._vocab is None:
            raise ValueError(
                f"autodeco_ext.{self.op}: chunk_size must be an integer for an lm_head module"
                " without out_features, got 'auto'"
            )
        return self._vocab

    @property
    def is_sharded(self) -> bool:
        """Whether a call of the module waits for the other ranks to call it."""
        return bool(self._gathered_by)

    def missing_calls(self, calls: int, device: torch.device) -> int:
        """How many more than these another rank makes, where a call waits for all of them."""
        if not self.is_sharded:
            return 0
        largest = torch.tensor(calls, device=device)
        for group in self._gathered_by:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
        return int(largest) - calls

    def buffer(self, rows: int, hidden_states: Tensor) -> Tensor | None:
        """Memory [rows, V] for the products of one chunk after the other.

        None where something else than torch's linear makes them, and where autocast chooses their
        dtype. A product that brings its own memory touches new pages in glibc's malloc: the last
        one's, of the same size, do not hold it and what its alignment costs.
        """
        types = (Tensor, nn.Parameter)  # another may stand for a weight of another form
        if not self._linear or any(type(one) not in types for one in self._linear):
            return None
        if _is_autocast(hidden_states.device.type):
            return None
        return hidden_states.new_empty(rows, len(self._linear[0]))

    def logits(self, hidden: Tensor, buffer: Tensor | None) -> Tensor:
        """[rows, H] -> [rows, V], in the buffer if there is one. Not differentiable."""
        if buffer is None:
            return self._transformed(self.project(hidden))
        return self._transformed(F.linear(hidden, *self._linear, out=buffer[: len(hidden)]))

    def gradients(
        self, hidden: Tensor, gradient_of: Callable[[Tensor], Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients for hidden and the parameters, of a loss whose dL/dlogits is given.

        gradient_of is called with the logits, which exist in here only.
        """
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            projected = self.project(hidden)
        if self.transform is None:
            gradient = gradient_of(projected.detach())
        else:
            leaf = projected.detach().requires_grad_()
            with torch.enable_grad():
                # Not of the leaf itself, which a transform in place must not change.
                logits = self._transformed(leaf.clone())
            if not logits.requires_grad:
                raise ValueError(
                    f"autodeco_ext.{self.op}: logits_transform must be differentiable with"
                    " train_base=True, got logits without a gradient"
                )
            (gradient,) = torch.autograd.grad(logits, leaf, gradient_of(logits.detach()))
            del logits
        return torch.autograd.grad(
            projected, [hidden, *self.parameters], gradient, allow_unused=True
        )

    def _transformed(self, projected: Tensor) -> Tensor:
        logits = projected if self.transform is None else self.transform(projected)
        rows = projected.shape[:1]
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[:1] != rows:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            name = "lm_head" if self.transform is None else "logits_transform"
            raise ValueError(
                f"autodeco_ext.{self.op}: {name} must return a tensor [{rows[0]}, vocab] for as"
                f" many rows, got {got}"
            )
        return logits


def _gathered_by(parameters: Sequence[Tensor]) -> list[torch.distributed.ProcessGroup | None]:
    """The groups (None is the default one) whose ranks gather these parameters; none if whole."""
    for parameter in parameters:
        mesh = getattr(parameter, "device_mesh", None)  # of a DTensor: FSDP2, tensor parallelism
        if mesh is not None:
            return [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
        if hasattr(parameter, "ds_id"):  # DeepSpeed ZeRO-3
            return [None] if torch.distributed.is_initialized() else []
    return []


def _check_module(op: str, module: nn.Module, hidden_states: Tensor, *, sharded: bool) -> None:
    """What is known to fail in the module's call, which is not made where no row has a label."""
    if isinstance(module, nn.Embedding):
        raise TypeError(
            f"autodeco_ext.{op}: lm_head must be a weight or a module that takes hidden states, got"
            f" {type(module).__name__} (give its weight)"
        )
    width = getattr(module, "in_features", hidden_states.shape[-1])
    if width != hidden_states.shape[-1]:
        raise ValueError(
            f"autodeco_ext.{op}: lm_head must have in_features {hidden_states.shape[-1]} like the"
            f" hidden states, got {width}"
        )
    if sharded or not _is_linear(module):
        return
    _check_kind(op, "lm_head", module.weight, hidden_states)
    if module.bias is not None:
        _check_kind(op, "lm_head.bias", module.bias, hidden_states)


def _is_linear(module: nn.Module) -> bool:
    """Whether forward is that of nn.Linear.

    Another may cast or move the weight first: a subclass's, one that accelerate has set on the
    module to load what is offloaded, FSDP's.
    """
    return "forward" not in vars(module) and type(module).forward is nn.Linear.forward


def _has_hooks(module: nn.Module) -> bool:
    """Whether anything but forward runs in a call of the module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or _module._has_any_global_hook()
    )


def _is_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _check_kind(op: str, name: str, tensor: Tensor, hidden_states: Tensor) -> None:
    """Device and dtype; autocast makes one dtype of both."""
    if tensor.device != hidden_states.device:
        raise ValueError(
            f"autodeco_ext.{op}: {name} must be on {hidden_states.device} like the hidden states,"
            f" got {tensor.device}"
        )
    if _is_autocast(hidden_states.device.type):
        return
    if tensor.dtype != hidden_states.dtype:
        raise ValueError(
            f"autodeco_ext.{op}: {name} must be {hidden_states.dtype} like the hidden states, got"
            f" {tensor.dtype}"
        )


def _check_weight(
    op: str, weight: object, bias: Tensor | None, hidden_states: Tensor
) -> list[Tensor]:
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"autodeco_ext.{op}: lm_head must be a weight or a module, got {type(weight).__name__}"
        )
    width = hidden_states.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] < 1:
        raise ValueError(
            f"autodeco_ext.{op}: lm_head must have shape [vocab, {width}] to go with"
            f" hidden_states, got {list(weight.shape)}"
        )
    if bias is not None:
        require_tensor(op, "bias", bias)
        if list(bias.shape) != [len(weight)]:
            raise ValueError(
                f"autodeco_ext.{op}: bias must have shape [{len(weight)}], got {list(bias.shape)}"
            )
    tensors = [weight] if bias is None else [weight, bias]
    for name, tensor in zip(("lm_head", "bias"), tensors, strict=False):
        _check_kind(op, name, tensor, hidden_states)
    return tensors

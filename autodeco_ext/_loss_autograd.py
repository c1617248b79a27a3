"""What autograd records of the training losses: the registered op, and a way round its wrapper.

The op autodeco_loss_rows computes losses and their gradients in one go; backward multiplies these.
A call of it with a gradient goes through torch.library's wrapper in Python and is followed by the
reductions, each recorded on its own. So outside of tracers and function
transforms, which must see the op itself, `_Losses` is all that is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autodeco_ext import _registration  # noqa: F401  (registers the ops and their fakes)
from autodeco_ext._arguments import call
from autodeco_ext.reference import AutoDecoLoss

_ops = torch.ops.autodeco_ext
# torch promises neither name. Without the first a call takes longer; without the second every call
# is recorded as the op.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)
_is_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


class LossOptions(NamedTuple):
    """Checked options of both ops, in schema order."""

    easy_token_drop: float
    ignore_index: int
    megatron: bool
    exclusive: bool
    steepness: float
    temperature_clamp: float
    top_p_temperature_clamp: float
    mass_eps: float
    probability_eps: float

    def of_gradient(self) -> tuple[Any, ...]:
        """Those that autodeco_loss_logits_gradient takes."""
        return self[2:]


class LossRows(NamedTuple):
    """Tensors as autodeco_loss_rows takes them, in schema order."""

    logits: Tensor
    temperature: Tensor
    top_p: Tensor
    labels: Tensor
    drop_uniform: Tensor | None


def losses_of_rows(
    rows: LossRows, options: LossOptions, check: bool, reduction: str
) -> AutoDecoLoss:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_transformed():
        losses, _, counted = call(_ops.autodeco_loss_rows, *rows, *options, check)
        return reduced(losses, counted, reduction)
    return AutoDecoLoss(*_Losses.apply(*rows, options, check, reduction))


def reduced(losses: Tensor, counted: Tensor, reduction: str) -> AutoDecoLoss:
    """losses and counted: `[2, ...]`, the temperature loss and the top-p loss of every position."""
    return _reduced(losses, _divisors(counted, reduction), reduction)


def _divisors(counted: Tensor, reduction: str) -> Tensor | None:
    return counted.reshape(2, -1).sum(1).clamp(min=1) if reduction == "mean" else None


def _reduced(losses: Tensor, divisors: Tensor | None, reduction: str) -> AutoDecoLoss:
    if reduction != "none":
        losses = losses.reshape(2, -1).sum(1)  # also of one position, [2]
    if divisors is not None:
        losses = losses / divisors
    of_temperature, of_top_p = losses[0], losses[1]
    return AutoDecoLoss(of_temperature + of_top_p, of_temperature, of_top_p)


class _Losses(torch.autograd.Function):
    """(tensors of the op, options, check, reduction) -> loss, temperature_loss, top_p_loss."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, options, check, reduction = inputs
        rows = LossRows(*tensors)
        with _below_autograd():
            losses, gradients, counted = call(_ops.autodeco_loss_rows, *rows, *options, check)
        divisors = _divisors(counted, reduction)
        for_logits = (rows.logits, rows.labels, counted) if ctx.needs_input_grad[0] else ()
        ctx.save_for_backward(divisors, rows.temperature, rows.top_p, gradients, *for_logits)
        ctx.options = options
        ctx.set_materialize_grads(False)
        loss, *parts = _reduced(losses, divisors, reduction)
        return loss, *(part.clone() for part in parts)  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        divisors, *saved = ctx.saved_tensors
        of_loss, *of_parts = given
        with torch.no_grad():
            of_losses = [_sum(of_loss, of_part) for of_part in of_parts]
            if divisors is not None:
                of_losses = [
                    None if one is None else one / divisor
                    for one, divisor in zip(of_losses, divisors.unbind(), strict=True)
                ]
            found = _input_gradients(ctx, saved, *of_losses)
        return (*_once_differentiable(found, saved, given), *[None] * 5)


def _product(one: Tensor, other: Tensor | None) -> Tensor | None:
    return None if other is None else one * other


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _input_gradients(
    ctx: Any,
    saved: Sequence[Tensor],
    of_temperature_loss: Tensor | None,
    of_top_p_loss: Tensor | None,
) -> list[Tensor | None]:
    """For logits, temperature and top_p, of derivatives for each position or for all of them."""
    temperature, top_p, gradients, *for_logits = saved
    found: list[Tensor | None] = [None, None, None]
    if ctx.needs_input_grad[0]:
        found[0] = _ops.autodeco_loss_logits_gradient(
            for_logits[0],
            temperature,
            top_p,
            *for_logits[1:],
            torch.stack(
                [
                    temperature.new_zeros(()).expand_as(temperature)
                    if one is None
                    else one.expand_as(temperature)
                    for one in (of_temperature_loss, of_top_p_loss)
                ]
            ),
            *ctx.options.of_gradient(),
        )
    first, second, of_top_p = gradients.unbind()
    if ctx.needs_input_grad[1]:
        found[1] = _sum(_product(first, of_temperature_loss), _product(second, of_top_p_loss))
    if ctx.needs_input_grad[2]:
        product = _product(of_top_p, of_top_p_loss)
        found[2] = torch.zeros_like(top_p) if product is None else product
    return found


class _FirstDerivative(torch.autograd.Function):
    """The identity on a derivative, tied to what it depends on; its own derivative is an error."""

    @staticmethod
    def forward(ctx: Any, op: str, derivative: Tensor, *depends_on: Tensor) -> Tensor:
        ctx.op = op
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"autodeco_ext.{ctx.op}: must be differentiated once, got a second derivative, which"
            " it does not have (autodeco_ext.reference has)"
        )


def first_derivative(op: str, derivative: Tensor | None, depends_on: tuple[Tensor, ...]) -> Any:
    """derivative, if need be in a form that raises where it is differentiated again.

    Otherwise autograd would take it for a constant and drop the second derivative silently.
    """
    if derivative is None or not torch.is_grad_enabled():
        return derivative
    return _FirstDerivative.apply(op, derivative, *depends_on)


def _once_differentiable(
    found: Sequence[Tensor | None], saved: Sequence[Tensor], given: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """What _input_gradients found, of what backward was given."""
    if not torch.is_grad_enabled():
        return found
    temperature, top_p, _, *for_logits = saved
    depends_on = (*(one for one in given if one is not None), temperature, top_p, *for_logits[:1])
    return [first_derivative("autodeco_loss", one, depends_on) for one in found]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, temperature, top_p, labels, _, *options, _ = inputs
    _, gradients, counted = output
    ctx.mark_non_differentiable(gradients, counted)
    for_logits = (logits, labels, counted) if ctx.needs_input_grad[0] else ()
    ctx.save_for_backward(temperature, top_p, gradients, *for_logits)
    ctx.options = LossOptions(*options)


def _backward(ctx: Any, loss_gradients: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    with torch.no_grad():
        found = _input_gradients(ctx, saved, *loss_gradients.unbind())
    found = _once_differentiable(found, saved, (loss_gradients,))
    num_others = 2 + len(ctx.options) + 1  # labels, drop_uniform; check
    return (*found, *[None] * num_others)


torch.library.register_autograd(
    "autodeco_ext::autodeco_loss_rows", _backward, setup_context=_save_for_backward
)

"""The training losses of the heads, with gradients that need no sort and no copy of the logits.

Definitions: docs/semantics.md, section 2; the same in plain PyTorch: `autodeco_ext.reference`. The
registered op computes losses and their gradients in one go; backward multiplies these.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autodeco_ext._arguments import (
    FLOAT32_MAX,
    checks_rows,
    errors_named,
    int64,
    number,
    require_supported_device,
    require_tensor,
    row_values,
)
from autodeco_ext._loss_autograd import LossOptions, LossRows, losses_of_rows
from autodeco_ext.reference import AutoDecoLoss

_REDUCTIONS = ("mean", "sum", "none")


def autodeco_loss(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    labels: Tensor,
    *,
    drop_uniform: Tensor | None = None,
    variant: str = "released",
    cumulative: str = "inclusive",
    easy_token_drop: float = 0.6,
    steepness: float = 30.0,
    temperature_clamp: float | None = None,
    top_p_temperature_clamp: float | None = None,
    mass_eps: float = 1e-9,
    probability_eps: float = 1e-9,
    ignore_index: int = -100,
    reduction: str = "mean",
    check: bool | None = None,
) -> AutoDecoLoss:
    """The loss that trains both heads: temperature cross entropy plus soft top-p loss.

    temperature loss: w_y * CE(l / max(T, temperature_clamp), y), w_y = softmax(l)_y a constant.
    top-p loss: w_y * -ln(q_y + probability_eps), with p = softmax(l / max(T,
    top_p_temperature_clamp)), C its running sum in descending order,
    m_i = exp(-steepness * relu(C_i - P)), q_i = p_i m_i / (sum p m + mass_eps). It trains T too.

    The gradients with respect to T and P are computed with the losses and kept, five numbers a
    position. Where the logits require grad, they are kept by reference and read again in backward.

    Args:
        logits: `[..., V]`, float32, bfloat16 or float16, vocabulary stride 1, any row stride, V at
            most 2^20. -inf excludes a token. labels[i] is the target of row i: shift the labels,
            `labels[..., 1:]` for `logits[..., :-1, :]`.
        temperature, top_p: `[...]`, floating point; T finite and >= 0 (> 0 without a clamp), P in
            [0, 1].
        labels: `[...]` integers in 0 .. V-1, or ignore_index.
        drop_uniform: `[...]` in [0, 1). A position whose argmax is the label (an easy token) is
            dropped where this is below easy_token_drop; other values are not refused. None draws
            from torch's generator: two calls then differ. (`autodeco_ext.reference`, which draws
            nothing, drops nothing for None: give both the same numbers to compare them.)
        variant: "released"; or "megatron", the distributed trainer, which does not clamp T, weights
            the temperature loss by the label's probability at T, and drops easy tokens from both
            losses, not from the temperature loss alone.
        cumulative: "inclusive" as released: C counts the token itself. "exclusive": only the mass
            before it, as sampling does.
        easy_token_drop: 0 drops nothing and draws nothing.
        steepness, mass_eps, probability_eps: constants of the soft top-p loss, >= 0.
        temperature_clamp, top_p_temperature_clamp: smallest T used, >= 0; None is 0.01 and 1e-8 as
            released, and no clamp, 0, in the megatron variant.
        ignore_index: label of positions that do not count. They are not read.
        reduction: "mean" over the positions that count (each part over its own), "sum", or "none"
            (0 where not counted). With nothing to count a differentiable zero.
        check: raise on an invalid row (NaN or +inf logits, no finite logit, T, P or label outside
            its range). None is True on the CPU and, because looking stalls the device, False on
            CUDA; False gives such a row the loss NaN.

    Returns:
        AutoDecoLoss(loss, temperature_loss, top_p_loss), float32; loss is the sum of the parts.

    Raises:
        ValueError: a shape, device or value that does not fit, or an invalid row, named.
        TypeError: an argument of the wrong type.
        RuntimeError: a second derivative.

    Determinism: losses and gradients of a row depend on that row alone, bit for bit, whatever the
    batch and the number of threads.

    Example:
        >>> import torch, autodeco_ext
        >>> logits, T = torch.zeros(3, 4), torch.full((3,), 0.5, requires_grad=True)
        >>> labels = torch.tensor([1, 2, -100])
        >>> loss = autodeco_ext.autodeco_loss(logits, T, torch.ones(3), labels).loss
        >>> loss.backward()
        >>> f"{loss:.4f}", T.grad.shape
        ('0.6931', torch.Size([3]))
    """
    op = "autodeco_loss"
    options = loss_options(
        op,
        variant=variant,
        cumulative=cumulative,
        easy_token_drop=easy_token_drop,
        steepness=steepness,
        temperature_clamp=temperature_clamp,
        top_p_temperature_clamp=top_p_temperature_clamp,
        mass_eps=mass_eps,
        probability_eps=probability_eps,
        ignore_index=ignore_index,
    )
    return _losses(
        op, logits, temperature, top_p, labels, drop_uniform, options, check, reduction, drops=True
    )


def soft_top_p_loss(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    labels: Tensor,
    *,
    drop_uniform: Tensor | None = None,
    variant: str = "released",
    cumulative: str = "inclusive",
    easy_token_drop: float = 0.6,
    steepness: float = 30.0,
    top_p_temperature_clamp: float | None = None,
    mass_eps: float = 1e-9,
    probability_eps: float = 1e-9,
    ignore_index: int = -100,
    reduction: str = "mean",
    check: bool | None = None,
) -> Tensor:
    """The top-p part of `autodeco_loss` alone: w_y * -ln(q_y + probability_eps).

    Args:
        drop_uniform, easy_token_drop: matter to the megatron variant only.
        The others, what is returned and raised: as in `autodeco_loss`.

    Returns:
        float32, a scalar or (reduction "none") `labels.shape`.

    Example:
        >>> import torch, autodeco_ext
        >>> logits, P = torch.tensor([[1.0, 3.0]]).log(), torch.ones(1)  # P = 1 cuts nothing
        >>> autodeco_ext.soft_top_p_loss(logits, torch.ones(1), P, torch.tensor([1]))
        tensor(0.2158)
    """
    op = "soft_top_p_loss"
    options = loss_options(
        op,
        variant=variant,
        cumulative=cumulative,
        easy_token_drop=easy_token_drop,
        steepness=steepness,
        temperature_clamp=None,
        top_p_temperature_clamp=top_p_temperature_clamp,
        mass_eps=mass_eps,
        probability_eps=probability_eps,
        ignore_index=ignore_index,
    )
    # Of the temperature loss only that it costs nothing matters: one clamp is one exponential less.
    options = options._replace(temperature_clamp=options.top_p_temperature_clamp)
    drops = options.megatron
    return _losses(
        op, logits, temperature, top_p, labels, drop_uniform, options, check, reduction, drops=drops
    ).top_p_loss


def loss_options(
    op: str,
    *,
    variant: str,
    cumulative: str,
    ignore_index: int,
    temperature_clamp: float | None,
    top_p_temperature_clamp: float | None,
    **numbers: float,
) -> LossOptions:
    """The options of a caller, checked; numbers are the four others of LossOptions."""
    megatron = _choice(op, "variant", variant, ("released", "megatron")) == 1
    exclusive = _choice(op, "cumulative", cumulative, ("inclusive", "exclusive")) == 1
    clamps = {
        "temperature_clamp": (temperature_clamp, 0.01),
        "top_p_temperature_clamp": (top_p_temperature_clamp, 1e-8),
    }
    for name, (value, released) in clamps.items():
        default = 0.0 if megatron else released
        numbers[name] = default if value is None else value
    for name, value in numbers.items():
        numbers[name] = number(op, name, value, "a number")
        if not (0 <= numbers[name] < math.inf):
            raise ValueError(f"autodeco_ext.{op}: {name} must be finite and >= 0, got {value}")
        if name in clamps and numbers[name] > FLOAT32_MAX:  # they are compared with T, a float32
            raise ValueError(
                f"autodeco_ext.{op}: {name} must be in the range of float32, got {value}"
            )
    if numbers["easy_token_drop"] > 1:
        raise ValueError(
            f"autodeco_ext.{op}: easy_token_drop must be in [0, 1], got"
            f" {numbers['easy_token_drop']}"
        )
    return LossOptions(
        ignore_index=int64(op, "ignore_index", ignore_index),
        megatron=megatron,
        exclusive=exclusive,
        **numbers,
    )


def require_reduction(op: str, reduction: str) -> None:
    _choice(op, "reduction", reduction, _REDUCTIONS)


def _choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> int:
    for index, choice in enumerate(choices):
        if isinstance(value, str) and value == choice:
            return index
    wanted = ", ".join(repr(choice) for choice in choices[:-1])
    raise ValueError(
        f"autodeco_ext.{op}: {name} must be {wanted} or {choices[-1]!r}, got {value!r}"
    )


def easy_token_uniform(
    op: str,
    drop_uniform: Tensor | None,
    labels: Tensor,
    options: LossOptions,
    *,
    drops: bool = True,
) -> Tensor | None:
    """float32 numbers of the shape of labels that decide which easy tokens are dropped.

    They are drawn for ignored labels too, so that their number depends on the shape alone. None
    where nothing is dropped; what the caller gave is checked all the same.
    """
    if drop_uniform is not None:
        drop_uniform = row_values(
            op, "drop_uniform", drop_uniform, torch.float32, labels.shape, labels.device
        )
    if not drops or options.easy_token_drop == 0:
        return None
    if drop_uniform is None:
        return torch.rand(labels.shape, device=labels.device)
    return drop_uniform


def _losses(
    op: str,
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    labels: Tensor,
    drop_uniform: Tensor | None,
    options: LossOptions,
    check: bool | None,
    reduction: str,
    *,
    drops: bool,
) -> AutoDecoLoss:
    require_reduction(op, reduction)
    require_tensor(op, "logits", logits)
    require_supported_device(op, logits)
    if logits.dim() == 0:
        raise ValueError(f"autodeco_ext.{op}: logits must have at least one dimension, got 0")
    shape, device = logits.shape[:-1], logits.device
    temperature = row_values(op, "temperature", temperature, torch.float32, shape, device)
    top_p = row_values(op, "top_p", top_p, torch.float32, shape, device)
    labels = row_values(op, "labels", labels, torch.int64, shape, device)
    uniform = easy_token_uniform(op, drop_uniform, labels, options, drops=drops)
    checks = checks_rows(op, check, logits)
    with errors_named(op):
        rows = LossRows(logits, temperature, top_p, labels, uniform)
        return losses_of_rows(rows, options, checks, reduction)

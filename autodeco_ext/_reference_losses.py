"""The two training losses of the heads in plain PyTorch; public as part of autodeco_ext.reference.

A position has logits l [V] of the frozen base, the heads' T and P, and a label y (the next token,
already shifted). Only positions with a label are read: ignored ones may hold anything. Computed in
the widest dtype that comes in, float32 at least.

Shared arguments:
    logits [..., V] floating point; temperature, top_p [...], floating point, T finite and >= 0 (> 0
        without a clamp), P in [0, 1]; labels int64 [...], in 0 .. V-1 or ignore_index.
    drop_uniform: [...] in [0, 1). A position whose argmax is the label (an easy token) is dropped
        where it is below easy_token_drop. None drops nothing here, where the ops, as training does,
        draw the numbers: give both the same ones to compare them.
    variant: "released"; or "megatron", the distributed trainer, which does not clamp T, weights the
        temperature loss by the label's probability at T, and drops easy tokens from both losses.
    temperature_clamp, top_p_temperature_clamp: smallest T used; 0 is no clamp, None the variant's.
    ignore_index: label of positions that do not count.
    reduction: "mean" over the positions that count, "sum", or "none" (0 where not counted). With
        nothing to count the result is a differentiable zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autodeco_ext._reference_checks import (
    RowCheck,
    check_logits,
    logits_checks,
    message,
    raise_at_invalid_row,
)


class AutoDecoLoss(NamedTuple):
    """The training loss and the two parts it is the sum of."""

    loss: Tensor
    temperature_loss: Tensor
    top_p_loss: Tensor


class _Counted(NamedTuple):
    """The positions that count."""

    mask: Tensor  # bool [...]
    logits: Tensor  # [n, vocab]
    labels: Tensor  # [n, 1], like temperature and top_p
    temperature: Tensor
    top_p: Tensor | None


def _check_tensor(op: str, name: str, value: object, shape: list[int]) -> None:
    got = value.dtype if isinstance(value, Tensor) else type(value).__name__
    if name == "labels":
        kind, fits = "an int64", got == torch.int64
    else:
        kind, fits = "a floating point", isinstance(value, Tensor) and value.is_floating_point()
    if not fits:
        raise TypeError(message(op, name, f"must be {kind} tensor", got))
    if list(value.shape) != shape:
        raise ValueError(message(op, name, f"must have shape {shape}", list(value.shape)))


def _check_constants(op: str, easy_token_drop: float, **constants: float) -> None:
    for name, value in constants.items():
        if not 0 <= value < math.inf:
            raise ValueError(message(op, name, "must be finite and >= 0", value))
    if not 0 <= easy_token_drop <= 1:
        raise ValueError(message(op, "easy_token_drop", "must be in [0, 1]", easy_token_drop))


def _check_labelled_rows(
    op: str,
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    clamp: float,
) -> None:
    vocab = logits.shape[-1]
    in_vocab = f"must be in 0 .. {vocab - 1} or {ignore_index}"
    checks: list[RowCheck] = [
        ("labels", in_vocab, lambda y: (y >= 0) & (y < vocab), labels.flatten()),
        # Before T and P, which may be NaN because heads read them.
        *logits_checks(logits.reshape(-1, vocab)),
    ]
    t = temperature.detach().flatten()
    checks.append(("temperature", "must be finite and >= 0", lambda t: t.isfinite() & (t >= 0), t))
    if clamp == 0:
        checks.append(("temperature", "must be > 0 where its clamp is 0", lambda t: t > 0, t))
    if top_p is not None:
        p = top_p.detach().flatten()
        checks.append(("top_p", "must be in [0, 1]", lambda p: (p >= 0) & (p <= 1), p))
    raise_at_invalid_row(op, checks, looked_at=(labels != ignore_index).flatten())


def _counted(
    op: str,
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor | None,
    labels: Tensor,
    drop_uniform: Tensor | None,
    easy_token_drop: float,
    ignore_index: int,
    clamp: float,
) -> _Counted:
    check_logits(op, logits)
    shape, vocab = list(logits.shape[:-1]), logits.shape[-1]
    for name, value in {"temperature": temperature, "labels": labels}.items():
        _check_tensor(op, name, value, shape)
    for name, value in {"top_p": top_p, "drop_uniform": drop_uniform}.items():
        if value is not None:
            _check_tensor(op, name, value, shape)
    _check_labelled_rows(op, logits, temperature, top_p, labels, ignore_index, clamp)
    mask = labels != ignore_index
    if drop_uniform is not None:
        is_largest = logits == logits.amax(-1, keepdim=True)
        index = torch.arange(vocab, device=logits.device)
        argmax = index.where(is_largest, vocab).amin(-1)  # lowest index among equals
        mask = mask & ~((argmax == labels) & (drop_uniform < easy_token_drop))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    columns: list[Tensor | None] = []
    for value in (temperature, top_p):
        if value is not None:
            dtype = torch.promote_types(dtype, value.dtype)
    for value in (temperature, top_p):
        columns.append(None if value is None else value[mask].to(dtype)[:, None])
    return _Counted(mask, logits[mask].to(dtype), labels[mask][:, None], *columns)


def _log_softmax(logits: Tensor, temperature: Tensor, clamp: float) -> Tensor:
    """log softmax(l / max(T, clamp)); -inf logits stay out of the gradient, which would be NaN."""
    masked = logits == -torch.inf
    if clamp > 0:
        temperature = temperature.clamp(min=clamp)
    shifted = logits - logits.amax(-1, keepdim=True).detach()
    scaled = shifted.masked_fill(masked, 0.0) / temperature
    return scaled.masked_fill(masked, -torch.inf).log_softmax(-1)


def _reduce(op: str, losses: Tensor, mask: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        zeros = torch.zeros(mask.shape, dtype=losses.dtype, device=losses.device)
        return zeros.masked_scatter(mask, losses)
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / max(len(losses), 1)
    raise ValueError(message(op, "reduction", "must be 'mean', 'sum' or 'none'", repr(reduction)))


def _is_megatron(op: str, variant: str) -> bool:
    if variant not in ("released", "megatron"):
        requirement = "must be 'released' or 'megatron'"
        raise ValueError(message(op, "variant", requirement, repr(variant)))
    return variant == "megatron"


def temperature_loss(
    logits: Tensor,
    temperature: Tensor,
    labels: Tensor,
    *,
    drop_uniform: Tensor | None = None,
    variant: str = "released",
    easy_token_drop: float = 0.6,
    temperature_clamp: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """w_y * CE(l / max(T, clamp), y) with w_y = softmax(l)_y detached.

    The megatron variant has w_y = softmax(l / T)_y detached. temperature_clamp is 0.01 as released.

    >>> logits = torch.tensor([[1.0, 3.0]]).log()
    >>> temperature_loss(logits, torch.ones(1), torch.tensor([1]))  # 0.75 * -ln 0.75
    tensor(0.2158)
    """
    op = "temperature_loss"
    megatron = _is_megatron(op, variant)
    if temperature_clamp is None:
        temperature_clamp = 0.0 if megatron else 0.01
    _check_constants(op, easy_token_drop, temperature_clamp=temperature_clamp)
    rows = _counted(
        op,
        logits,
        temperature,
        None,
        labels,
        drop_uniform,
        easy_token_drop,
        ignore_index,
        temperature_clamp,
    )
    log_probs = _log_softmax(rows.logits, rows.temperature, temperature_clamp)
    label_log_prob = log_probs.gather(-1, rows.labels)
    weights = log_probs.exp() if megatron else rows.logits.softmax(-1)
    weight = weights.detach().gather(-1, rows.labels)
    # A label that the base masks out has weight 0 and an infinite CE; their product tends to 0.
    losses = weight * -label_log_prob.masked_fill(weight == 0, 0.0)
    return _reduce(op, losses[:, 0], rows.mask, reduction)


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
) -> Tensor:
    """w_y * -ln(q_y + probability_eps) under a nucleus with a soft edge; it trains T too.

    p = softmax(l / max(T, clamp)), C its running sum in the order (l descending, index ascending),
    m_i = exp(-steepness * relu(C_i - P)), q_i = p_i m_i / (sum p m + mass_eps), w_y = softmax(l)_y
    detached. drop_uniform matters to the megatron variant only, top_p_temperature_clamp is 1e-8 as
    released.

    Args:
        cumulative: "inclusive" as released: a first token with p_1 > P already decays, although a
            hard top-p keeps it. "exclusive" sums the mass strictly before a token, as that does.

    >>> logits = torch.tensor([[1.0, 3.0]]).log()
    >>> soft_top_p_loss(logits, torch.ones(1), torch.ones(1), torch.tensor([1]))  # P = 1: no cut
    tensor(0.2158)
    """
    op = "soft_top_p_loss"
    megatron = _is_megatron(op, variant)
    if cumulative not in ("inclusive", "exclusive"):
        requirement = "must be 'inclusive' or 'exclusive'"
        raise ValueError(message(op, "cumulative", requirement, repr(cumulative)))
    if top_p_temperature_clamp is None:
        top_p_temperature_clamp = 0.0 if megatron else 1e-8
    _check_constants(
        op,
        easy_token_drop,
        steepness=steepness,
        top_p_temperature_clamp=top_p_temperature_clamp,
        mass_eps=mass_eps,
        probability_eps=probability_eps,
    )
    rows = _counted(
        op,
        logits,
        temperature,
        top_p,
        labels,
        drop_uniform if megatron else None,
        easy_token_drop,
        ignore_index,
        top_p_temperature_clamp,
    )

    # Adding zero makes -0.0 equal to +0.0, so that ties are in index order on every backend.
    order = (rows.logits.detach() + 0.0).sort(dim=-1, descending=True, stable=True).indices
    log_probs = _log_softmax(rows.logits, rows.temperature, top_p_temperature_clamp)
    probs = log_probs.exp().gather(-1, order)
    # Masses sum to 1 at most: where the sum is rounded up, top_p = 1 must not find a tail.
    running = probs.cumsum(-1).clamp(max=1.0)
    if cumulative == "exclusive":
        running = F.pad(running[:, :-1], (1, 0))
    kept = probs * (-steepness * (running - rows.top_p).relu()).exp()
    kept = kept / (kept.sum(-1, keepdim=True) + mass_eps)
    kept_label = torch.zeros_like(kept).scatter(-1, order, kept).gather(-1, rows.labels)
    weight = rows.logits.softmax(-1).detach().gather(-1, rows.labels)
    # A label that the base masks out costs nothing, also where probability_eps is 0.
    losses = weight * -(kept_label.masked_fill(weight == 0, 1.0) + probability_eps).log()
    return _reduce(op, losses[:, 0], rows.mask, reduction)


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
) -> AutoDecoLoss:
    """temperature_loss + soft_top_p_loss, and both parts; each part is reduced on its own.

    Unlike autodeco_ext.autodeco_loss it draws nothing: with drop_uniform=None no easy token is
    dropped, and the results of the two differ.

    >>> logits, half = torch.zeros(3, 4), torch.full((3,), 0.5, requires_grad=True)
    >>> autodeco_loss(logits, half, half, torch.tensor([0, 1, -100])).loss.backward()
    """
    shared = {
        "drop_uniform": drop_uniform,
        "variant": variant,
        "easy_token_drop": easy_token_drop,
        "ignore_index": ignore_index,
        "reduction": reduction,
    }
    of_temperature = temperature_loss(
        logits, temperature, labels, temperature_clamp=temperature_clamp, **shared
    )
    of_top_p = soft_top_p_loss(
        logits,
        temperature,
        top_p,
        labels,
        cumulative=cumulative,
        steepness=steepness,
        top_p_temperature_clamp=top_p_temperature_clamp,
        mass_eps=mass_eps,
        probability_eps=probability_eps,
        **shared,
    )
    return AutoDecoLoss(of_temperature + of_top_p, of_temperature, of_top_p)

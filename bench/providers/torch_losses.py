"""The released training losses in pure torch, forward and backward: eager, compiled, by chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autodeco_ext.reference import AutoDecoLoss

CHUNK = 8  # rows: a float32 copy of V = 151,936 is 5 MB
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], AutoDecoLoss]


def released(logits: Tensor, temperature: Tensor, top_p: Tensor, labels: Tensor) -> AutoDecoLoss:
    """Losses [rows] of the released formula: a sort, about ten copies of the logits for autograd.

    The sort is stable, as the definition is and the released code is not.
    """
    logits, labels = logits.float(), labels[:, None]
    weight = logits.softmax(-1).gather(-1, labels).detach()
    log_probs = (logits / temperature.clamp(min=0.01)[:, None]).log_softmax(-1)
    temperature_loss = -weight * log_probs.gather(-1, labels)

    probs = (logits / temperature.clamp(min=1e-8)[:, None]).softmax(-1)
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    kept = ordered * (-30 * (ordered.cumsum(-1) - top_p[:, None]).relu()).exp()
    kept = kept / (kept.sum(-1, keepdim=True) + 1e-9)
    kept_label = torch.zeros_like(kept).scatter(-1, order, kept).gather(-1, labels)
    top_p_loss = -weight * (kept_label + 1e-9).log()
    loss = temperature_loss + top_p_loss
    return AutoDecoLoss(loss[:, 0], temperature_loss[:, 0], top_p_loss[:, 0])


def with_gradients(loss: Loss, *arguments: Tensor) -> Tensor:
    """[4, rows]: temperature loss, top-p loss, and the gradients of their sum for T and P."""
    logits, temperature, top_p, labels = arguments
    temperature, top_p = (x.detach().requires_grad_() for x in (temperature, top_p))
    result = loss(logits, temperature, top_p, labels)
    ones = torch.ones_like(result.loss)
    gradients = torch.autograd.grad(result.loss, (temperature, top_p), ones)
    return torch.stack([result.temperature_loss.detach(), result.top_p_loss.detach(), *gradients])


def eager(*arguments: Tensor) -> Tensor:
    return with_gradients(released, *arguments)


_compiled = torch.compile(released, dynamic=True, fullgraph=True)


def compiled(*arguments: Tensor) -> Tensor:
    return with_gradients(_compiled, *arguments)


def chunked(*arguments: Tensor) -> Tensor:
    """A few rows at a time, backward too, so that memory does not grow with the rows."""
    chunks = zip(*(argument.split(CHUNK) for argument in arguments), strict=True)
    return torch.cat([with_gradients(released, *chunk) for chunk in chunks], dim=1)

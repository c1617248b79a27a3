"""The definitions in plain PyTorch: sampling, random numbers, head features, training losses.

Written to be read and compared with, in float64 unless told otherwise; the compiled ops are the
fast way to the same numbers. A row is one vector of V logits. Parameters are scalars or tensors
that broadcast to ``logits.shape[:-1]``:

    logits       [..., V], floating point; -inf excludes a token
    temperature  finite, >= 0; 0 is greedy (the argmax, lowest index among equals)
    top_p        shortest prefix of the order whose mass is >= top_p; <= 0 the first token only,
                 >= 1 off
    top_k        first k tokens of the order; 0 or None off
    min_p        tokens of probability >= min_p * the largest; <= 0 or None off, > 1 the first only
    valid_vocab  >= 1; columns at or beyond it do not exist

temperature, top_p and min_p are rounded to float32 first, whatever they come in. The order of
tokens is (logit descending, index ascending), -0.0 equal to +0.0. Filters run in the order
temperature, top_k, top_p, min_p, each on what the ones before it kept.

The sampling functions and the losses raise ValueError for shapes that do not fit, for values out of
range and for an invalid row (NaN, +inf, or no finite logit), which they name; TypeError for a wrong
type or dtype. The functions of the heads do so where they read statistics of the logits; draw and
the random numbers take any values.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autodeco_ext._reference_checks import (
    PerRow,
    PerRowInt,
    Rows,
    check_rows,
    message,
    row_keys,
)
from autodeco_ext._reference_losses import (
    AutoDecoLoss,
    autodeco_loss,
    soft_top_p_loss,
    temperature_loss,
)
from autodeco_ext._reference_random import philox4x32_10, philox_uniform

__all__ = [
    "AutoDecoLoss",
    "HeadPrediction",
    "KeptIndices",
    "SampleOutput",
    "autodeco_loss",
    "distribution_stats",
    "draw",
    "filter_logits",
    "head_features",
    "head_predictions",
    "kept_indices",
    "kept_mask",
    "philox4x32_10",
    "philox_uniform",
    "sample",
    "sampling_distribution",
    "soft_top_p_loss",
    "temperature_loss",
]


class SampleOutput(NamedTuple):
    """What `sample(..., return_info=True)` returns.

    Attributes:
        tokens: int64 `logits.shape[:-1]` (`+ [num_samples]`); -1 in invalid rows.
        logprobs: shape of `tokens`; natural logarithm of the token's probability under
            the filtered, renormalised distribution.
        raw_logprobs: shape of `tokens`; the same under softmax at temperature 1 over the
            valid columns, before any filter.
        kept: int64 `logits.shape[:-1]`; number of tokens the filters leave.
        log_kept_mass: `logits.shape[:-1]`; natural logarithm of the mass of the kept tokens
            in softmax(logits / T) over the valid columns.
        valid: bool `logits.shape[:-1]`; False where the row could not be sampled.

    The op returns float32 without gradients; the reference returns its own dtype.
    """

    tokens: Tensor
    logprobs: Tensor
    raw_logprobs: Tensor
    kept: Tensor
    log_kept_mass: Tensor
    valid: Tensor


class KeptIndices(NamedTuple):
    """What `kept_indices` returns: the kept set of every row in compressed sparse row form.

    Attributes:
        offsets: int64 [rows + 1], leading dimensions flattened; row r keeps
            `ids[offsets[r] : offsets[r + 1]]`.
        ids: int32 [offsets[-1]], or [capacity]; columns, ascending within a row.
    """

    offsets: Tensor
    ids: Tensor


class HeadPrediction(NamedTuple):
    """Temperature and top_p of every position."""

    temperature: Tensor
    top_p: Tensor


def _scaled(rows: Rows) -> Tensor:
    """z = (l - max l) / T, [rows, vocab]; a greedy row stays at T = 1, _kept leaves one token."""
    divisor = rows.temperature.where(rows.temperature > 0, 1.0)
    return (rows.logits - rows.logits.amax(-1, keepdim=True)) / divisor


def _kept(rows: Rows) -> Tensor:
    """The kept set, bool [rows, vocab]."""
    vocab = rows.logits.shape[-1]
    order = rows.logits.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(vocab, device=order.device)
    mass = _scaled(rows).exp().gather(-1, order)  # in the order, relative to the largest

    keep = rows.logits.gather(-1, order) > -torch.inf
    keep &= (rank < rows.top_k) | (rows.top_k == 0)
    running = (mass * keep).cumsum(-1)
    before = F.pad(running[:, :-1], (1, 0))  # mass strictly before the token
    keep &= (before < rows.top_p * running[:, -1:]) | (rows.top_p >= 1)
    keep &= (mass >= rows.min_p) | (rows.min_p <= 0)
    keep &= rows.temperature > 0
    keep |= rank == 0
    return torch.zeros_like(keep).scatter(-1, order, keep)


def kept_mask(
    logits: Tensor,
    temperature: PerRow = 1.0,
    top_p: PerRow = 1.0,
    top_k: PerRowInt | None = None,
    min_p: PerRow | None = None,
    valid_vocab: PerRowInt | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Which tokens can be drawn, bool [..., V]; arithmetic in ``dtype``.

    >>> kept_mask(torch.tensor([0.5, 0.25, 0.25]).log(), top_p=0.75)
    tensor([ True,  True, False])
    """
    rows = check_rows("kept_mask", logits, temperature, top_p, top_k, min_p, valid_vocab, dtype)
    return _kept(rows).view(logits.shape)


def kept_indices(
    logits: Tensor,
    temperature: PerRow = 1.0,
    top_p: PerRow = 1.0,
    top_k: PerRowInt | None = None,
    min_p: PerRow | None = None,
    valid_vocab: PerRowInt | None = None,
    *,
    capacity: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> KeptIndices:
    """The tokens that can be drawn, as columns instead of a mask.

    Args:
        capacity: length of ``ids``: what does not fit is left out, the rest is filled with -1.

    >>> kept_indices(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log(), top_p=0.75)
    KeptIndices(offsets=tensor([0, 2, 3]), ids=tensor([0, 1, 2], dtype=torch.int32))
    """
    rows = check_rows("kept_indices", logits, temperature, top_p, top_k, min_p, valid_vocab, dtype)
    kept = _kept(rows)
    offsets = F.pad(kept.sum(-1).cumsum(0), (1, 0))
    ids = kept.nonzero()[:, 1].int()
    if capacity is not None:
        ids = F.pad(ids, (0, capacity - len(ids)), value=-1)  # a negative width cuts
    return KeptIndices(offsets, ids)


def sampling_distribution(
    logits: Tensor,
    temperature: PerRow = 1.0,
    top_p: PerRow = 1.0,
    top_k: PerRowInt | None = None,
    min_p: PerRow | None = None,
    valid_vocab: PerRowInt | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """softmax(l / T) restricted to the kept set and renormalised, ``dtype`` [..., V].

    >>> logits = torch.tensor([0.5, 0.25, 0.25]).log()
    >>> sampling_distribution(logits, top_k=2, dtype=torch.float32)
    tensor([0.6667, 0.3333, 0.0000])
    """
    op = "sampling_distribution"
    rows = check_rows(op, logits, temperature, top_p, top_k, min_p, valid_vocab, dtype)
    mass = _scaled(rows).exp() * _kept(rows)
    return (mass / mass.sum(-1, keepdim=True)).view(logits.shape)


def filter_logits(
    logits: Tensor,
    temperature: PerRow = 1.0,
    top_p: PerRow = 1.0,
    top_k: PerRowInt | None = None,
    min_p: PerRow | None = None,
    valid_vocab: PerRowInt | None = None,
    *,
    filter_value: float = -torch.inf,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """l / T inside the kept set and ``filter_value`` outside, ``dtype`` [..., V].

    Saturates at the largest finite float32; a greedy row's argmax keeps its logit.

    >>> filter_logits(torch.tensor([2.0, 1.0, 0.0]), 0.5, top_k=2, dtype=torch.float32)
    tensor([4., 2., -inf])
    """
    rows = check_rows("filter_logits", logits, temperature, top_p, top_k, min_p, valid_vocab, dtype)
    limit = torch.finfo(torch.float32).max
    scaled = rows.logits / rows.temperature.where(rows.temperature > 0, 1.0)
    return scaled.clamp(-limit, limit).where(_kept(rows), filter_value).view(logits.shape)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverse CDF in index order: the smallest j with sum_{i <= j} p_i > u * sum p.

    Args:
        probs: [rows, vocab], >= 0 with a positive sum, which need not be 1.
        uniform: [rows, samples] in [0, 1).

    Returns:
        int64 [rows, samples]; where rounding leaves no such j, the last token of positive mass.

    >>> draw(torch.tensor([[0.25, 0.0, 0.75]]), torch.tensor([[0.0, 0.2, 0.25, 0.9]]))
    tensor([[0, 0, 2, 2]])
    """
    running = probs.double().cumsum(-1)
    total = running[:, -1:]
    tokens = torch.searchsorted(running, uniform.double() * total, right=True)
    return tokens.minimum((running < total).sum(-1, keepdim=True))


def sample(
    logits: Tensor,
    temperature: PerRow = 1.0,
    top_p: PerRow = 1.0,
    top_k: PerRowInt | None = None,
    min_p: PerRow | None = None,
    *,
    seed: PerRowInt,
    offset: PerRowInt | None = None,
    valid_vocab: PerRowInt | None = None,
    num_samples: int | None = None,
    return_info: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor | SampleOutput:
    """A token per row by inverse CDF, int64 [...] or [..., num_samples].

    Args:
        seed, offset: int or int64 tensor that broadcasts to logits.shape[:-1]. A scalar seed with a
            scalar or no offset gives row r (seed, offset + r); else pairs are used as given, and
            offset is 0 by default.
        num_samples: draws 0 .. num_samples - 1 differ in the last word of the Philox counter.
        return_info: return SampleOutput, its floating point members in ``dtype``.
        Others: as at the top of this module.

    >>> sample(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), 0.1, seed=0)
    tensor([1, 0])
    """
    rows = check_rows("sample", logits, temperature, top_p, top_k, min_p, valid_vocab, dtype)
    seed, offset = row_keys("sample", seed, offset, logits)
    samples = 1 if num_samples is None else num_samples
    if not isinstance(samples, numbers.Integral) or samples < 1:
        raise ValueError(message("sample", "num_samples", "must be an int >= 1", num_samples))
    number = torch.arange(samples, device=logits.device)
    kept, scaled = _kept(rows), _scaled(rows)
    uniform = philox_uniform(seed[:, None], offset[:, None], 0, number)
    tokens = draw(scaled.exp() * kept, uniform)  # [rows, samples]

    shape = logits.shape[:-1]
    drawn = shape if num_samples is None else (*shape, samples)
    if not return_info:
        return tokens.view(drawn)
    log_mass = scaled.where(kept, -torch.inf).logsumexp(-1, keepdim=True)
    log_kept_mass = log_mass - scaled.logsumexp(-1, keepdim=True)
    return SampleOutput(
        tokens=tokens.view(drawn),
        logprobs=(scaled.gather(-1, tokens) - log_mass).view(drawn),
        raw_logprobs=rows.logits.log_softmax(-1).gather(-1, tokens).view(drawn),
        kept=kept.sum(-1).view(shape),
        log_kept_mass=log_kept_mass.where(rows.temperature > 0, 0.0).view(shape),
        valid=torch.ones(shape, dtype=torch.bool, device=logits.device),
    )


def distribution_stats(
    logits: Tensor, temperature: PerRow = 1.0, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The four head features of q = softmax(l / (T + 1e-8)), ``dtype`` [..., 4].

    max q; entropy -sum q ln(q + 1e-8); unbiased variance of the V numbers q_i, 0 for V = 1; sum of
    the five largest.

    >>> distribution_stats(torch.zeros(4), 1.0, dtype=torch.float32)
    tensor([0.2500, 1.3863, 0.0000, 1.0000])
    """
    rows = check_rows("distribution_stats", logits, temperature, dtype=dtype)
    shifted = rows.logits - rows.logits.amax(-1, keepdim=True)  # first, or T = 0 overflows
    q = (shifted / (rows.temperature + 1e-8)).softmax(-1)
    entropy = -(q * (q + 1e-8).log()).sum(-1)
    squares = (q - q.mean(-1, keepdim=True)).square().sum(-1)
    variance = squares / max(q.shape[-1] - 1, 1)
    top5 = q.topk(min(5, q.shape[-1])).values.sum(-1)
    return torch.stack([q.amax(-1), entropy, variance, top5], dim=-1).view(*logits.shape[:-1], 4)


def head_features(
    hidden: Tensor, logits: Tensor, temperature: Tensor, *, enhanced: bool = True
) -> Tensor:
    """The top-p head's input: x = [h, T, stats] [..., H + 5], or [h, T] [..., H + 1].

    T is detached and the logits are constants. In hidden's dtype, float32 at least.

    Args:
        hidden: [..., H]; logits: [..., V]; temperature: [...].
        enhanced: with the four distribution_stats at that temperature.

    >>> head_features(torch.zeros(2, 8), torch.zeros(2, 4), torch.ones(2)).shape
    torch.Size([2, 13])
    """
    parts = [hidden, temperature.detach().unsqueeze(-1)]
    if enhanced:
        parts.append(distribution_stats(logits.detach(), temperature.detach()))
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return torch.cat([part.to(dtype) for part in parts], dim=-1)


def head_predictions(
    hidden: Tensor, logits: Tensor, weights: Mapping[str, Tensor], *, enhanced: bool = True
) -> HeadPrediction:
    """T = 2 sigmoid(mlp_T(h)) and P = sigmoid(mlp_P(x)), [...], x = head_features(h, l, T).

    mlp(x) = W2 relu(W1 x + b1) + b2, in hidden's dtype, float32 at least.

    Args:
        hidden: [..., H]; logits: [..., V].
        weights: W1, b1, W2, b2 as {temp_head,top_p_head}.mlp.{0,2}.{weight,bias}.
        enhanced: whether the top-p head sees the four distribution_stats.

    >>> shapes = {"temp_head.mlp.0": (3, 8), "temp_head.mlp.2": (1, 3)}
    >>> shapes |= {"top_p_head.mlp.0": (3, 13), "top_p_head.mlp.2": (1, 3)}
    >>> weights = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    >>> weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    >>> head_predictions(torch.zeros(8), torch.zeros(4), weights)
    HeadPrediction(temperature=tensor(1.), top_p=tensor(0.5000))
    """

    def mlp(head: str, x: Tensor) -> Tensor:
        names = ("0.weight", "0.bias", "2.weight", "2.bias")
        w1, b1, w2, b2 = (weights[f"{head}.mlp.{name}"].to(x) for name in names)
        return F.linear(F.linear(x, w1, b1).relu(), w2, b2).squeeze(-1).sigmoid()

    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    temperature = 2 * mlp("temp_head", hidden)
    features = head_features(hidden, logits, temperature, enhanced=enhanced)
    return HeadPrediction(temperature, mlp("top_p_head", features))

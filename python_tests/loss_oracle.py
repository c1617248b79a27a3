"""The training losses of one row in float64 by their sorted closed forms, and how ops are judged.

Shares no code with the library: the reference is judged by it as well (test_losses_oracle.py).
What cancels in the textbook form (1 - C, 1 - q, sums with the label in them) is carried as a
remainder, so that small losses and gradients keep their digits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from oracle import TOLERANCES
from torch import Tensor


class LossOptions(NamedTuple):
    """The constants of both losses; the defaults are the released ones."""

    megatron: bool = False
    exclusive: bool = False
    steepness: float = 30.0
    temperature_clamp: float = 0.01
    top_p_temperature_clamp: float = 1e-8
    mass_eps: float = 1e-9
    probability_eps: float = 1e-9


RELEASED = LossOptions()
MEGATRON = LossOptions(megatron=True, temperature_clamp=0.0, top_p_temperature_clamp=0.0)


@dataclasses.dataclass
class ExactLoss:
    """One weighted loss of one row, its gradients, and scales to judge their errors by.

    The scale of a gradient is what its terms would sum to without their signs: where they cancel,
    nothing else says how large an error is. The scale of the loss is its probability_eps, that of
    d_top_p, where the label is before the cut, what it would be with a whole mass beyond it.
    """

    loss: float
    d_temperature: float
    d_top_p: float  # 0 for the temperature loss
    loss_scale: float
    d_temperature_scale: float
    d_top_p_scale: float
    of_logits: Callable[[], tuple[Tensor, Tensor]]  # d_logits and its scale, only when asked for
    temperature: float = 1.0

    @functools.cached_property
    def _of_logits(self) -> tuple[Tensor, Tensor]:
        return self.of_logits()

    @property
    def d_logits(self) -> Tensor:  # [vocab]
        return self._of_logits[0]

    @property
    def d_logits_scale(self) -> Tensor:  # [vocab]
        return self._of_logits[1]

    @staticmethod
    def zero(vocab: int) -> ExactLoss:
        zeros = torch.zeros(vocab, dtype=torch.float64)
        return ExactLoss(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, lambda: (zeros, zeros))


def as_float32(value: float) -> float:
    """Temperature, top_p and the clamps they are compared with are float32 numbers."""
    return float(torch.tensor(value, dtype=torch.float32))


class _Softmax:
    """softmax(l / T) in rank order, with running sums accurate from either end."""

    def __init__(self, below: Tensor, temperature: float) -> None:
        self.temperature = temperature
        self.x = below / temperature
        self.weights = (-self.x).exp()
        self.sum = float(self.weights.sum())
        self.p = self.weights / self.sum
        self.slope = float((self.p * self.x).sum()) - self.x  # T dlnp/dT of every token

    def probability(self, rank: int) -> float:
        return math.exp(-float(self.x[rank])) / self.sum

    @functools.lru_cache(maxsize=2)  # noqa: B019 (as short-lived as its row)
    def running(self, exclusive: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mass up to every rank, mass left after it, and running sums of p * slope."""
        mass, left = _running(self.p, exclusive)
        drift, drift_left = _running(self.p * self.slope, exclusive)
        # All of p * slope sums to zero, so that either end gives the other.
        return mass, left, torch.where(mass > 0.5, -drift_left, drift)

    def over(self, top_p: float, exclusive: bool) -> Tensor:
        """C - P of every token."""
        mass, left, _ = self.running(exclusive)
        return torch.where(mass > 0.5, (1.0 - top_p) - left, mass - top_p)


def _running(values: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Sums of what comes before and of what is left after every rank, which itself is in one."""
    before, left = values.cumsum(0), values.flip(0).cumsum(0).flip(0)
    none = torch.zeros(1, dtype=torch.float64)
    if exclusive:
        return torch.cat([none, before[:-1]]), left
    return before, torch.cat([left[1:], none])


class SortedRow:
    """The finite logits of a row in the order (logit descending, index ascending)."""

    def __init__(self, logits: Tensor) -> None:
        self.vocab = len(logits)
        ordered, order = (logits.detach() + 0.0).sort(descending=True, stable=True)
        count = int((ordered > -torch.inf).sum())
        self.order = order[:count]
        self.below = (ordered[0].double() - ordered[:count].double()).abs()  # max - l, ascending

    @functools.lru_cache(maxsize=3)  # noqa: B019 (as short-lived as the row)
    def softmax(self, temperature: float) -> _Softmax:
        return _Softmax(self.below, temperature)

    def rank(self, label: int) -> int | None:
        """Place of a token in the order; None if its logit is -inf."""
        places = (self.order == label).nonzero()
        return int(places) if len(places) else None

    def by_column(self, by_rank: Tensor) -> Tensor:
        return torch.zeros(self.vocab, dtype=torch.float64).scatter(0, self.order, by_rank)


def without(values: Tensor, rank: int) -> float:
    """The sum of all values but one."""
    return float(values[:rank].sum() + values[rank + 1 :].sum())


def exact_temperature_loss(
    row: SortedRow, temperature: float, label: int, options: LossOptions = RELEASED
) -> ExactLoss:
    rank = row.rank(label)
    if rank is None:
        return ExactLoss.zero(row.vocab)
    temperature, clamp = as_float32(temperature), as_float32(options.temperature_clamp)
    softmax = row.softmax(max(temperature, clamp))
    weight = (softmax if options.megatron else row.softmax(1.0)).probability(rank)
    if weight == 0:
        return ExactLoss.zero(row.vocab)
    x_label, others_sum = float(softmax.x[rank]), without(softmax.weights, rank)
    if x_label < 1:
        cross_entropy = math.log1p(others_sum * math.exp(x_label))
    else:
        cross_entropy = math.log(softmax.sum) + x_label
    scale = weight / softmax.temperature
    terms = softmax.p * (softmax.x - x_label)

    def of_logits() -> tuple[Tensor, Tensor]:
        by_rank = scale * softmax.p
        by_rank[rank] = -scale * others_sum / softmax.sum
        gradient = row.by_column(by_rank)
        return gradient, gradient.abs()

    moves = float(temperature >= clamp)
    return ExactLoss(
        loss=weight * cross_entropy,
        d_temperature=moves * scale * float(terms.sum()),
        d_top_p=0.0,
        loss_scale=0.0,
        d_temperature_scale=moves * scale * float(terms.abs().sum()),
        d_top_p_scale=0.0,
        of_logits=of_logits,
        temperature=softmax.temperature,
    )


def exact_soft_top_p_loss(
    row: SortedRow, temperature: float, top_p: float, label: int, options: LossOptions = RELEASED
) -> ExactLoss:
    """top_p is taken in float64, so that it can be moved by less than a float32 step."""
    rank = row.rank(label)
    if rank is None:
        return ExactLoss.zero(row.vocab)
    temperature, clamp = as_float32(temperature), as_float32(options.top_p_temperature_clamp)
    softmax = row.softmax(max(temperature, clamp))
    weight = row.softmax(1.0).probability(rank)
    if weight == 0:
        return ExactLoss.zero(row.vocab)
    a, p = options.steepness, softmax.p

    mass, _, drift = softmax.running(options.exclusive)
    over = softmax.over(top_p, options.exclusive)
    tail = over > 0
    decay = torch.where(tail, (-a * over).exp(), 1.0)
    soft = p * decay
    pull = softmax.slope - a * tail.double() * drift  # T dln(soft)/dT

    head_mass, tail_mass = float(soft[~tail].sum()), float(soft[tail].sum())
    total = head_mass + tail_mass + options.mass_eps
    rest = without(soft, rank) + options.mass_eps
    q = float(soft[rank]) / total
    eps = options.probability_eps
    ratio = q / (q + eps) if q > 0 else 0.0
    loss = -math.log1p(eps - rest / total) if q > 0.5 else -math.log(q + eps)
    label_in_tail = bool(tail[rank])
    if label_in_tail:
        d_top_p = -ratio * a * (head_mass + options.mass_eps) / total
    else:
        d_top_p = ratio * a * tail_mass / total

    # d ln q / dT = pull[label] - mean of pull under soft; the label's own share is taken out.
    own = -float(pull[rank])
    terms = soft * pull
    d_temperature = own * rest / total + without(terms, rank) / total
    d_temperature_scale = abs(own) * rest / total + without(terms.abs(), rank) / total

    scale = weight / softmax.temperature

    def of_logits() -> tuple[Tensor, Tensor]:
        in_tail = soft * tail
        left = in_tail.flip(0).cumsum(0).flip(0)  # of the ranks whose C a token is part of
        before_label = torch.arange(len(p)) < rank
        if options.exclusive:
            left = torch.cat([left[1:], torch.zeros(1, dtype=torch.float64)])
        else:
            before_label[rank] = True
        shift = a * ratio * label_in_tail * before_label.double()
        tail_moment = a * (ratio / total) * float((in_tail * mass).sum())
        label_moment = a * ratio * label_in_tail * float(mass[rank])
        mean = (ratio / total) * (head_mass + tail_mass) - ratio - tail_moment + label_moment
        by_rank = p * ((ratio / total) * (decay - a * left) + shift - mean)
        by_rank[rank] = -without(by_rank, rank)
        spread = (ratio / total) * (1.0 + a * left) + shift + ratio + tail_moment + label_moment
        spread = p * spread
        spread[rank] = without(spread, rank)
        return row.by_column(scale * by_rank), row.by_column(scale * spread)

    moves = float(temperature >= clamp)
    return ExactLoss(
        loss=weight * loss,
        d_temperature=-moves * scale * ratio * d_temperature,
        d_top_p=weight * d_top_p,
        loss_scale=weight * eps,
        d_temperature_scale=moves * scale * ratio * d_temperature_scale,
        d_top_p_scale=0.0 if label_in_tail else weight * ratio * a / total,
        of_logits=of_logits,
        temperature=softmax.temperature,
    )


# How results are judged

# A cumulative mass may be off by this: near the cut, any top_p this close decides what is right.
# top_p = 0 and 1 have no such slack. The same share of all mass is allowed for in d_top_p.
MASS_SLACK = 2e-7
BESIDE_JUMP = 1e-15  # more than what float64 rounds of a mass
# Below this a loss, or a gradient in its own unit (1/T for those in T and in the logits), may be
# anything of that size: nobody trains on it.
NEGLIGIBLE = 1e-25


def acceptable_soft_top_p_losses(
    row: SortedRow, temperature: float, top_p: float, label: int, options: LossOptions = RELEASED
) -> list[ExactLoss]:
    """The loss at top_p and, where there are any, at both ends of what MASS_SLACK allows.

    And on both sides of the cumulative masses in between, where a result jumps: at a large
    steepness neither end is near the value beside a jump.
    """
    top_p = as_float32(top_p)
    moves = [0.0]
    if 0 < top_p < 1:
        clamp = as_float32(options.top_p_temperature_clamp)
        softmax = row.softmax(max(as_float32(temperature), clamp))
        over = softmax.over(top_p, options.exclusive)
        jumps = over[(over.abs() <= MASS_SLACK) & (softmax.p > MASS_SLACK / 2)].tolist()
        moves += [-MASS_SLACK, MASS_SLACK]
        moves += [jump + side for jump in jumps for side in (-BESIDE_JUMP, BESIDE_JUMP)]
    return [exact_soft_top_p_loss(row, temperature, top_p + move, label, options) for move in moves]


def error_share(
    got: float | Tensor, name: str, acceptable: list[ExactLoss], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The error of one result as a share of what is allowed: <= 1 is right. [vocab] for d_logits.

    Args:
        name: field of ExactLoss.
        acceptable: the exact value, then others; a result between any two of them is right.
        dtype: of the result, whose own rounding is allowed for. Beyond its largest number only the
            infinity of the right sign is right.
    """

    def as_float64(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64)

    tolerance = TOLERANCES[name]
    values = torch.stack([as_float64(getattr(one, name)) for one in acceptable])
    scales = torch.stack([as_float64(getattr(one, f"{name}_scale")) for one in acceptable])
    got, exact = as_float64(got), values[0]
    narrow = torch.finfo(dtype)
    allowed = (tolerance.relative + narrow.eps) * values.abs().amax(0)
    allowed = allowed + tolerance.absolute * scales.amax(0)
    unit = acceptable[0].temperature if name in ("d_temperature", "d_logits") else 1.0
    allowed = allowed + NEGLIGIBLE / min(unit, 1.0) + narrow.smallest_normal * narrow.eps
    infinite = torch.where(got == exact.sign() * torch.inf, 0.0, torch.inf)
    # An infinity is also what a little less than the largest number may be rounded to.
    got, values = got.clamp(-narrow.max, narrow.max), values.clamp(-narrow.max, narrow.max)
    error = torch.maximum(values.amin(0) - got, got - values.amax(0)).clamp(min=0)
    beyond = exact.abs() > narrow.max * (1 + tolerance.relative)
    share = torch.where(beyond, infinite, error / allowed)
    return share.nan_to_num(nan=torch.inf, posinf=torch.inf)

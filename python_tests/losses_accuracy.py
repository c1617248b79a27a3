"""Accuracy of the loss ops at a language model's vocabulary, against the exact float64 form.

    python python_tests/losses_accuracy.py [--vocab 151936] [--every 7] [--baseline]

prints a table: the largest and the 99th percentile relative error of the loss, dL/dP and dL/dT over
every distribution x temperature x top_p x label, per dtype. An error is relative to the exact value
and, where that cancels, to what cancels (the scales of loss_oracle.py by the ratio that
oracle.TOLERANCES allows). Where top_p is within MASS_SLACK of a cumulative mass, a result between
those on either side has no error. --every takes one combination in so many; --baseline adds the
released formula in float32 PyTorch, on fewer cases.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from loss_judge import run_losses
from loss_oracle import (
    MASS_SLACK,
    SortedRow,
    acceptable_soft_top_p_losses,
    as_float32,
    error_share,
)
from oracle import TOLERANCES, generator
from torch import Tensor

import autodeco_ext
from autodeco_ext import reference

TEMPERATURES = (0.05, 0.3, 0.7, 1.0, 1.5, 2.0)
TOP_PS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
NAMES = {"loss": "top_p_loss", "d_top_p": "top_p_loss_d_top_p"}
NAMES["d_temperature"] = "top_p_loss_d_temperature"


def _normal(vocab: int, random: torch.Generator) -> Tensor:
    return torch.randn(vocab, generator=random)


def _zipf(slope: float, noise: float) -> Callable[[int, torch.Generator], Tensor]:
    """p of the r-th token ~ r^-slope, shuffled, with noise on the logits."""

    def make(vocab: int, random: torch.Generator) -> Tensor:
        rank = torch.randperm(vocab, generator=random) + 2.0
        return 12 - slope * rank.log() + noise * _normal(vocab, random)

    return make


def _spread(deviation: float) -> Callable[[int, torch.Generator], Tensor]:
    return lambda vocab, random: deviation * _normal(vocab, random)


def _raised(number: int, height: float, spread: float) -> Callable[[int, torch.Generator], Tensor]:
    """A few tokens far above a bulk."""

    def make(vocab: int, random: torch.Generator) -> Tensor:
        row = spread * _normal(vocab, random)
        places = torch.randperm(vocab, generator=random)[:number]
        row[places] = height + 0.3 * torch.arange(number).flip(0) * (number < 100)
        return row

    return make


def _masked(vocab: int, random: torch.Generator) -> Tensor:
    hidden = torch.rand(vocab, generator=random) < 0.5
    return _zipf(1.2, 0.7)(vocab, random).masked_fill(hidden, -torch.inf)


DISTRIBUTIONS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "zipf 1.0": _zipf(1.0, 0.7),
    "zipf 1.4": _zipf(1.4, 0.7),
    "zipf 2.0": _zipf(2.0, 0.5),
    "normal 1": _spread(1.0),
    "normal 2": _spread(2.0),
    "normal 5": _spread(5.0),
    "equal": _spread(0.0),
    "nearly equal": _spread(1e-4),
    "one token": _raised(1, 25.0, 1.0),
    "two tokens": _raised(2, 22.0, 1.0),
    "sixty tokens": _raised(60, 4.0, 2.3),
    "a twentieth raised": _raised(7000, 6.0, 0.3),
    "whole numbers": lambda vocab, random: (2 * _normal(vocab, random)).round(),
    "half masked": _masked,
}


class Case(NamedTuple):
    """One row with one temperature and top_p, and the labels around its cut."""

    distribution: str
    row: SortedRow
    logits: Tensor  # [labels, vocab], one row in memory
    temperature: Tensor  # [labels]
    top_p: Tensor
    labels: Tensor


def cases(
    vocab: int, dtype: torch.dtype, every: int = 1, only: str | None = None
) -> Iterator[Case]:
    """All combinations, or one in ``every``; of all distributions, or only one."""
    number = itertools.count()
    for seed, (distribution, make) in enumerate(DISTRIBUTIONS.items()):
        if only not in (None, distribution):
            continue
        random = generator(seed)
        logits = make(vocab, random).to(dtype)
        row = SortedRow(logits)
        sampled = int(torch.multinomial(logits.float().softmax(0), 1, generator=random))
        for temperature, top_p in itertools.product(TEMPERATURES, TOP_PS):
            if next(number) % every:
                continue
            temperature, top_p = as_float32(temperature), as_float32(top_p)
            mass = row.softmax(temperature).running(False)[0]
            last = len(mass) - 1
            crossing = int((mass <= top_p).sum())
            ranks = torch.tensor([0, 1, crossing - 1, crossing, crossing + 1, len(mass) // 2])
            labels = torch.cat([row.order[ranks.clamp(0, last)], torch.tensor([sampled])])
            yield Case(
                distribution,
                row,
                logits.expand(len(labels), -1),
                torch.full((len(labels),), temperature),
                torch.full((len(labels),), top_p),
                labels,
            )


def errors(case: Case, got: dict[str, Tensor]) -> dict[str, list[float]]:
    """Relative errors of each label's results; got: by the names of ExactLoss."""
    found: dict[str, list[float]] = {name: [] for name in got}
    temperature, top_p = float(case.temperature[0]), float(case.top_p[0])
    mass = case.row.softmax(temperature).running(False)[0]
    on_a_mass = bool(((mass - top_p).abs() < MASS_SLACK).any())
    for i, label in enumerate(case.labels.tolist()):
        exact = acceptable_soft_top_p_losses(case.row, temperature, top_p, label)
        if not on_a_mass:
            exact = exact[:1]
        for name, values in got.items():
            share = float(error_share(values[i], name, exact))
            found[name].append(share * TOLERANCES[name].relative)
    return found


def of_op(case: Case) -> dict[str, Tensor]:
    results = run_losses(*case[2:])._asdict()
    return {name: results[field] for name, field in NAMES.items()}


def of_released_formula(case: Case) -> dict[str, Tensor]:
    """The reference as PyTorch runs it in float32, one row at a time."""
    columns = []
    for logits, temperature, top_p, label in zip(*case[2:], strict=True):
        leaves = temperature[None].requires_grad_(), top_p[None].requires_grad_()
        loss = reference.soft_top_p_loss(logits[None].float(), *leaves, label[None])
        columns.append((loss.detach()[None], *torch.autograd.grad(loss, leaves)))
    loss, d_temperature, d_top_p = (
        torch.stack(column).flatten() for column in zip(*columns, strict=True)
    )
    return {"loss": loss, "d_top_p": d_top_p, "d_temperature": d_temperature}


def table(
    vocab: int,
    dtype: torch.dtype,
    what: str,
    run: Callable[[Case], dict[str, Tensor]],
    every: int = 1,
) -> list[str]:
    """A line for each distribution and one for all of them."""
    by_distribution: dict[str, dict[str, list[float]]] = {}
    for case in cases(vocab, dtype, every):
        of_case = by_distribution.setdefault(case.distribution, {name: [] for name in NAMES})
        for name, values in errors(case, run(case)).items():
            of_case[name] += values
    everything = {
        name: [value for found in by_distribution.values() for value in found[name]]
        for name in NAMES
    }
    lines = []
    for distribution, found in (by_distribution | {"all": everything}).items():
        cells = [what, str(dtype).removeprefix("torch."), distribution, str(len(found["loss"]))]
        for name in NAMES:
            values = torch.tensor(found[name], dtype=torch.float64)
            cells += [f"{float(values.max()):.1e}", f"{float(values.quantile(0.99)):.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--baseline", action="store_true", help="also the released formula")
    parser.add_argument("--every", type=int, default=1, help="take one combination in so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"V = {arguments.vocab}, {autodeco_ext.cpu_isa()}\n")
    print("| | dtype | distribution | cases | loss max | p99 | dP max | p99 | dT max | p99 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for line in table(arguments.vocab, dtype, "op", of_op, arguments.every):
            print(line, flush=True)
    if arguments.baseline:
        every = 9 * arguments.every
        for line in table(
            arguments.vocab, torch.float32, "PyTorch float32", of_released_formula, every
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()

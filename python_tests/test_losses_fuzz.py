"""The training losses on rows, parameters and labels that a seeded generator makes hard.

Every result is judged against the exact sorted float64 form. A batch is a function of its number
alone, so that a test on its own and a run of all tests see the same ones. The slow tests take more
of them, and longer rows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import NamedTuple

import adversarial
import losses_accuracy
import pytest
import torch
from loss_judge import DTYPES, IGNORE, assert_losses_exact
from loss_oracle import MEGATRON, RELEASED, LossOptions, SortedRow, as_float32
from oracle import generator
from torch import Tensor

TEMPERATURES = (0.0, 1e-45, 1e-30, 1e-9, 1e-8, 1e-3, 0.0099, 0.01, 0.02, 0.05, 2, 3, 30, 1e30)
# 50 is the largest at which the CPU walks tokens in groups (csrc/cpu/loss_steep.h).
STEEPNESS = (30.0, 30.0, 30.0, 0.0, 1e-3, 7.3, 50.0, 300.0, 1e4)
VOCAB_SIZES = (1, 2, 3, 63, 64, 65, 257, 511, 512, 513, 1000, 4097)
LARGE_VOCAB_SIZES = (12289, 32003, adversarial.LARGE_VOCAB)


class Batch(NamedTuple):
    logits: Tensor  # [rows, vocab]
    temperature: Tensor  # [rows]
    top_p: Tensor
    labels: Tensor
    options: LossOptions
    drop_uniform: Tensor | None


def cumulative_mass(row: SortedRow, temperature: float) -> Tensor:
    """What a cut falls on: the inclusive running sums in float64."""
    return (-row.below / temperature).softmax(0).cumsum(0)


def draw_top_p(draw: random.Random, mass: Tensor) -> float:
    """Anywhere, at the ends, or where a cumulative mass is, to within a few float32 steps."""
    kind = draw.choice(("anywhere", "next to an end", "extreme", "on a mass", "on the largest"))
    if kind == "anywhere":
        return draw.random()
    if kind == "next to an end":
        distance = 10 ** draw.uniform(-9, 0)
        return draw.choice((distance, 1 - distance))
    if kind == "extreme":
        return draw.choice(adversarial.TOP_PS)
    rank = 0 if kind == "on the largest" else draw.randrange(len(mass))
    steps = draw.randint(-3, 3)
    near = torch.tensor(float(mass[rank]), dtype=torch.float32)
    for _ in range(abs(steps)):
        near = torch.nextafter(near, torch.tensor(2.0 if steps > 0 else -1.0))
    return float(near.clamp(0, 1))


def draw_label(draw: random.Random, row: SortedRow, mass: Tensor, top_p: float) -> int:
    """The crossing token, its neighbours, either end of the order, any column, or none."""
    last = len(mass) - 1
    crossing = min(int((mass <= top_p).sum()), last)
    kind = draw.choice(("crossing", "beside it", "end", "any rank", "any column", "none"))
    if kind == "none":
        return IGNORE
    if kind == "any column":
        return draw.randrange(row.vocab)
    if kind == "any rank":
        rank = draw.randint(0, last)
    elif kind == "end":
        rank = draw.choice((0, 1, last))
    else:
        rank = crossing + (0 if kind == "crossing" else draw.choice((-2, -1, 1, 2)))
    return int(row.order[min(max(rank, 0), last)])


def make_batch(number: int, vocab_sizes: tuple[int, ...], rows: int) -> Batch:
    """Rows of families of their own, some of them in a strided view among NaN."""
    draw = random.Random(number)
    vocab = draw.choice(vocab_sizes)
    dtype = draw.choice(DTYPES)
    options = draw.choice((RELEASED, RELEASED, MEGATRON))._replace(
        exclusive=draw.random() < 0.5, steepness=draw.choice(STEEPNESS)
    )
    of_logits = generator(draw.getrandbits(31))
    masked = draw.choice((0.0, 0.0, 0.3, 0.9, 0.999))
    families = [draw.choice(sorted(adversarial.FAMILIES)) for _ in range(rows)]
    logits = torch.stack(
        [adversarial.make_row(family, vocab, dtype, masked, of_logits) for family in families]
    )
    chosen: list[tuple[float, float, int]] = []
    for row in map(SortedRow, logits):
        extreme = draw.randrange(4) == 0
        temperature = draw.choice(TEMPERATURES) if extreme else draw.uniform(0.05, 2)
        temperature = as_float32(temperature)
        if options.megatron and temperature < torch.finfo(torch.float32).smallest_normal:
            temperature = 1.0  # 0 is valid only where a clamp raises it, less is inexact
        clamped = max(temperature, as_float32(options.top_p_temperature_clamp))
        mass = cumulative_mass(row, clamped)
        top_p = as_float32(draw_top_p(draw, mass))
        chosen.append((temperature, top_p, draw_label(draw, row, mass, top_p)))
    temperature, top_p, labels = (list(column) for column in zip(*chosen, strict=True))
    if draw.random() < 0.5:
        around = torch.full((rows, vocab + 7), torch.nan, dtype=dtype)
        around[:, 3 : 3 + vocab] = logits
        logits = around[:, 3 : 3 + vocab]
    drop = torch.rand(rows, generator=of_logits) if draw.random() < 0.5 else None
    return Batch(
        logits, torch.tensor(temperature), torch.tensor(top_p), torch.tensor(labels), options, drop
    )


def check_batch(batch: Batch) -> None:
    *arguments, drop = batch
    # The slack of top_p moves single elements of a steeper d_logits back and forth. Of more than
    # 2^13 tokens, light ones get the mean of their group (docs/architecture.md).
    with_logits = batch.options.steepness <= 300 and batch.logits.shape[-1] <= 2**13
    assert_losses_exact(*arguments, drop_uniform=drop, with_logits=with_logits)


def check_batches(numbers: Iterable[int], vocab_sizes: tuple[int, ...], rows: int) -> None:
    for number in numbers:
        try:
            check_batch(make_batch(number, vocab_sizes, rows))
        except AssertionError as error:
            raise AssertionError(f"batch {number}: {error}") from error


@pytest.mark.slow
def test_any_parameters_on_any_row(backend: str) -> None:
    check_batches(range(120), VOCAB_SIZES, rows=3)


def test_any_parameters_on_a_row_of_a_language_model(backend: str) -> None:
    check_batches(range(6), LARGE_VOCAB_SIZES, rows=1)


@pytest.mark.slow
def test_many_more_of_them(backend: str) -> None:
    check_batches(range(3000), VOCAB_SIZES, rows=3)


@pytest.mark.slow
def test_many_more_rows_of_a_language_model(backend: str) -> None:
    check_batches(range(300), LARGE_VOCAB_SIZES, rows=2)


# What these find too rarely


def labels_around(row: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens at the crossing and around it, and both ends of the order."""
    ordered = SortedRow(row)
    crossing = int((cumulative_mass(ordered, temperature) <= as_float32(top_p)).sum())
    last = len(ordered.order) - 1
    ranks = torch.tensor([0, 1, crossing - 1, crossing, crossing + 1, last]).clamp(0, last)
    return ordered.order[ranks]


def check_row(row: Tensor, temperature: float, top_p: float, options: LossOptions = RELEASED):
    """The row with every label around its cut."""
    labels = labels_around(row, temperature, top_p)
    parameters = (torch.full((len(labels),), value) for value in (temperature, top_p))
    assert_losses_exact(row.expand(len(labels), -1), *parameters, labels, options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_around_the_cut_of_a_language_models_rows(backend: str, dtype: torch.dtype) -> None:
    for case in losses_accuracy.cases(adversarial.LARGE_VOCAB, dtype, every=19):
        assert_losses_exact(case.logits, case.temperature, case.top_p, case.labels)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.7, 1 - 2**-24, 1.0])
def test_the_largest_vocabulary_of_equal_tokens(
    backend: str, top_p: float, dtype: torch.dtype
) -> None:
    check_row(torch.zeros(2**20, dtype=dtype), 1.0, top_p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [4096, 2**16])
def test_a_cut_inside_one_group_of_equal_tokens(
    backend: str, dtype: torch.dtype, vocab: int
) -> None:
    row = torch.full((vocab,), -1.0, dtype=dtype)
    row[5::7] = 1.0
    for top_p in (0.3, 0.9):
        for steepness in (30.0, 1e4):
            check_row(row, 0.9, top_p, RELEASED._replace(steepness=steepness))


@pytest.mark.parametrize("options", [RELEASED, MEGATRON], ids=["released", "megatron"])
@pytest.mark.parametrize("temperature", [2e-38, 1e-35, 1e-30, 2.0])
def test_differences_below_the_normal_floats(
    backend: str, options: LossOptions, temperature: float
) -> None:
    row = adversarial.make_row("denormal", 600, torch.float32, 0.0, generator(0))
    check_row(row, temperature, 0.6, options)


@pytest.mark.parametrize("steepness", [0.0, 1e-6, 300.0, 1e4])
@pytest.mark.parametrize("family", ["peaked", "gaussian", "nearly_flat", "few_values"])
def test_any_steepness(backend: str, family: str, steepness: float) -> None:
    row = adversarial.make_row(family, 5000, torch.float32, 0.0, generator(1))
    for options in (RELEASED, RELEASED._replace(exclusive=True)):
        # At 0 the eps are all that bounds the loss of tokens that decay at once.
        for top_p in (0.0, 0.4, 1.0):
            check_row(row, 0.8, top_p, options._replace(steepness=steepness))


@pytest.mark.parametrize("steepness", [30.0, 50.0, 300.0])
@pytest.mark.parametrize(("number", "probability"), [(13, 4.3e-5), (2000, 6e-5), (4096, 1.1e-4)])
def test_light_equal_tokens_have_the_gradient_of_their_place(
    cpu_backend: str, number: int, probability: float, steepness: float
) -> None:
    """One token has the rest; dL/dlogits falls at the cut, and from token to token after it."""
    rest = 1 - number * probability
    row = torch.full((number + 1,), math.log(probability / rest))
    row[0] = 0.0
    places = [place for place in (0, 1, 9, 1000) if place < number]
    top_ps = [rest + probability * (place + part) for place in places for part in (0.02, 0.98)]
    labels = torch.tensor([0, 1, number // 2, number])
    for top_p in top_ps:
        assert_losses_exact(
            row.expand(len(labels), -1),
            torch.ones(len(labels)),
            torch.full((len(labels),), top_p),
            labels,
            RELEASED._replace(steepness=steepness),
            with_logits=True,
        )


def test_an_exclusive_cut_before_any_light_token(cpu_backend: str) -> None:
    """Tokens of one group differ in weight: its last one is lighter than their mean."""
    row = adversarial.make_row("gaussian", 3000, torch.float32, 0.0, generator(2))
    ordered = SortedRow(row)
    ranks = torch.arange(600, 1000)  # of probability 1e-4 to 4e-4
    before = ordered.softmax(1.25).running(True)[0][ranks]
    top_p = (before - 4e-7).float()
    labels = ordered.order[ranks - 1]
    options = RELEASED._replace(exclusive=True)
    temperature = torch.full((len(ranks),), 1.25)
    assert_losses_exact(row.expand(len(ranks), -1), temperature, top_p, labels, options)


@pytest.mark.parametrize("temperature", [0.6, 1.25, 30.0, 1e3, 1e6])
def test_d_temperature_where_most_mass_has_the_labels_logit(
    cpu_backend: str, temperature: float
) -> None:
    """dL/dT is the difference of two sums that are nearly equal."""
    noise = generator(3)
    for vocab in (700, 4097, 20000):
        row = torch.full((vocab,), -0.7 * min(temperature, 20.0))
        row[5] = 0.0
        below = torch.randperm(vocab - 6, generator=noise)[:20] + 6
        row[below] -= min(temperature, 20.0) * torch.rand(20, generator=noise)
        label = next(column for column in range(6, vocab) if column not in below)
        for steepness in (0.0, 30.0):
            assert_losses_exact(
                row[None],
                torch.tensor([temperature]),
                torch.tensor([0.1]),
                torch.tensor([label]),
                RELEASED._replace(steepness=steepness),
            )


def test_a_far_token_too_light_to_be_seen_counts_in_d_temperature(cpu_backend: str) -> None:
    """Its mass is less than what float32 rounds of the whole, its share of the slope is not."""
    noise = generator(4)
    rows = 3.0 - 1e-4 * torch.rand(200, 50, generator=noise)
    rows[:, 0] = -1.3
    rows[:, 9] = -15.0 * 0.28 + 3.0
    count = len(rows)
    labels = torch.randint(10, 50, (count,), generator=noise)
    assert_losses_exact(
        rows,
        torch.full((count,), 0.28),
        torch.full((count,), 0.7),
        labels,
        RELEASED._replace(steepness=0.0),
    )

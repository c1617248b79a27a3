"""The reference losses: values by hand, gradients, what counts and what does not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import make_rows

from autodeco_ext import reference

INF, NAN = float("inf"), float("nan")
PROBS = (0.5, 0.3, 0.2)  # of the rows computed by hand


def row() -> torch.Tensor:
    return torch.tensor([PROBS], dtype=torch.float64).log()


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def label(value: int) -> torch.Tensor:
    return torch.tensor([value])


def random_batch(rows: int, vocab: int, seed: int, kind: str = "peaked"):
    """logits, T, P (leaves that want a gradient), labels; float64."""
    random = torch.Generator().manual_seed(seed)
    logits = make_rows(kind, rows, vocab, torch.float64, random)
    temperature = 0.3 + 1.5 * torch.rand(rows, dtype=torch.float64, generator=random)
    top_p = 0.1 + 0.85 * torch.rand(rows, dtype=torch.float64, generator=random)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=random)[:, 0]
    return logits, temperature.requires_grad_(), top_p.requires_grad_(), labels


# Values by hand


def test_temperature_loss_is_the_weighted_cross_entropy() -> None:
    squares = [p * p for p in PROBS]  # softmax at T = 0.5
    expected = 0.3 * -math.log(squares[1] / sum(squares))
    got = reference.temperature_loss(row(), one(0.5), label(1))
    assert got.item() == pytest.approx(expected, rel=1e-14)
    megatron = reference.temperature_loss(row(), one(0.5), label(1), variant="megatron")
    assert megatron.item() == pytest.approx(expected / 0.3 * squares[1] / sum(squares), rel=1e-14)


def test_the_temperature_is_clamped_as_released_and_not_in_the_variant() -> None:
    at_clamp = reference.temperature_loss(row(), one(0.01), label(1))
    below = one(0.004).requires_grad_()
    loss = reference.temperature_loss(row(), below, label(1))
    assert torch.equal(loss, at_clamp)
    loss.backward()
    assert below.grad.item() == 0
    moved = reference.temperature_loss(row(), one(0.004), label(1), temperature_clamp=0.5)
    assert torch.equal(moved, reference.temperature_loss(row(), one(0.5), label(1)))


@pytest.mark.parametrize(("variant", "clamps"), [("released", (0.01, 1e-8)), ("megatron", (0, 0))])
def test_each_variant_has_its_own_clamps(variant: str, clamps: tuple[float, float]) -> None:
    def losses(temperature: float, **options) -> tuple[float, float]:
        # So close together that a temperature below the clamp still tells the tokens apart.
        logits, t, p = row() * temperature, one(temperature), one(0.6)
        return tuple(
            part.item()
            for part in reference.autodeco_loss(logits, t, p, label(1), variant=variant, **options)
        )[1:]

    for i, (name, temperature) in enumerate(
        [("temperature_clamp", 0.004), ("top_p_temperature_clamp", 4e-9)]
    ):
        default = losses(temperature)[i]
        assert default == losses(temperature, **{name: clamps[i]})[i]
        assert (default == losses(temperature, **{name: 0.0})[i]) == (clamps[i] == 0)


def test_soft_top_p_loss_decays_the_inclusive_sum_beyond_top_p() -> None:
    masses = [0.5, 0.3 * math.exp(-30 * 0.2), 0.2 * math.exp(-30 * 0.4)]  # C = 0.5, 0.8, 1; P = 0.6
    total = sum(masses) + 1e-9
    for i, p in enumerate(PROBS):
        expected = p * -math.log(masses[i] / total + 1e-9)
        got = reference.soft_top_p_loss(row(), one(1.0), one(0.6), label(i))
        assert got.item() == pytest.approx(expected, rel=1e-12)


def test_the_exclusive_sum_always_keeps_the_first_token() -> None:
    # P = 0.25: inclusively even the first token (C = 0.5) decays; exclusively it starts at C = 0.
    inclusive = [p * math.exp(-10 * c) for p, c in zip(PROBS, (0.25, 0.55, 0.75), strict=True)]
    exclusive = [p * math.exp(-10 * c) for p, c in zip(PROBS, (0.0, 0.25, 0.55), strict=True)]
    for name, masses in (("inclusive", inclusive), ("exclusive", exclusive)):
        expected = 0.5 * -math.log(masses[0] / (sum(masses) + 1e-9) + 1e-9)
        got = reference.soft_top_p_loss(
            row(), one(1.0), one(0.25), label(0), cumulative=name, steepness=10.0
        )
        assert got.item() == pytest.approx(expected, rel=1e-12)


def test_top_p_of_one_is_the_cross_entropy() -> None:
    logits, temperature, _, labels = random_batch(20, 50, seed=0)
    got = reference.soft_top_p_loss(
        logits, temperature, torch.ones(20), labels, mass_eps=0.0, probability_eps=0.0
    )
    expected = reference.temperature_loss(logits, temperature, labels)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["peaked", "gaussian", "flat"])
def test_a_top_p_of_one_has_no_gradient_whatever_the_sums_round_to(kind: str) -> None:
    logits, temperature, _, _ = random_batch(200, 50, seed=8, kind=kind)
    top_p = torch.ones(200, dtype=torch.float64, requires_grad=True)
    losses = reference.soft_top_p_loss(logits, temperature, top_p, logits.argmin(-1))
    (gradient,) = torch.autograd.grad(losses, top_p)
    assert (gradient == 0).all()


def test_the_epsilons_bound_the_loss_where_top_p_is_zero() -> None:
    loss = reference.soft_top_p_loss(row(), one(1.0), one(0.0), label(2), steepness=1000.0)
    assert loss.item() == pytest.approx(0.2 * -math.log(1e-9), rel=1e-9)


def test_the_sum_of_both_is_the_loss() -> None:
    logits, temperature, top_p, labels = random_batch(20, 50, seed=1)
    drop = torch.linspace(0, 1, 20)
    total = reference.autodeco_loss(logits, temperature, top_p, labels, drop_uniform=drop)
    part_t = reference.temperature_loss(logits, temperature, labels, drop_uniform=drop)
    part_p = reference.soft_top_p_loss(logits, temperature, top_p, labels)
    assert torch.equal(total.temperature_loss, part_t)
    assert torch.equal(total.top_p_loss, part_p)
    assert torch.equal(total.loss, part_t + part_p)


# Gradients


@pytest.mark.parametrize("cumulative", ["inclusive", "exclusive"])
@pytest.mark.parametrize("variant", ["released", "megatron"])
def test_gradients_agree_with_finite_differences(variant: str, cumulative: str) -> None:
    logits, temperature, top_p, labels = random_batch(6, 12, seed=3)

    # The weights are detached, which differences are not: divided out, both see the same function.
    def soft_top_p(logits, temperature, top_p):
        weight = logits.softmax(-1).gather(-1, labels[:, None])[:, 0].detach()
        options = {"variant": variant, "cumulative": cumulative, "reduction": "none"}
        return reference.soft_top_p_loss(logits, temperature, top_p, labels, **options) / weight

    def cross_entropy(logits, temperature):
        scale = temperature[:, None] if variant == "megatron" else 1.0
        weight = (logits / scale).softmax(-1).gather(-1, labels[:, None])[:, 0].detach()
        options = {"variant": variant, "reduction": "none"}
        return reference.temperature_loss(logits, temperature, labels, **options) / weight

    logits.requires_grad_()
    assert torch.autograd.gradcheck(soft_top_p, (logits, temperature, top_p))
    assert torch.autograd.gradcheck(cross_entropy, (logits, temperature))


def test_the_soft_top_p_loss_trains_the_temperature_too() -> None:
    logits, temperature, top_p, labels = random_batch(20, 50, seed=4)
    loss = reference.autodeco_loss(logits, temperature, top_p, labels)
    (gradient,) = torch.autograd.grad(loss.top_p_loss, temperature)
    assert (gradient != 0).all()


def test_masked_tokens_leave_finite_gradients() -> None:
    logits, temperature, top_p, labels = random_batch(20, 50, seed=5)
    unlikely = logits.argmin(-1, keepdim=True)
    masked = logits.scatter(-1, unlikely, -INF)
    # Removing a token must be the same as never having had it.
    without = logits[torch.arange(50) != unlikely].view(20, 49)
    shifted = labels - (labels > unlikely[:, 0]).long()
    keep = labels != unlikely[:, 0]
    got, expected = (
        reference.autodeco_loss(x[keep], temperature[keep], top_p[keep], y[keep]).loss
        for x, y in ((masked, labels), (without, shifted))
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    got, expected = (torch.autograd.grad(x, (temperature, top_p)) for x in (got, expected))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_a_label_that_the_base_masks_out_costs_nothing() -> None:
    logits = torch.tensor([[0.0, -INF, 1.0]], requires_grad=True)
    temperature, top_p = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    for variant, eps in itertools.product(("released", "megatron"), (1e-9, 0.0)):
        loss = reference.autodeco_loss(
            logits, temperature, top_p, label(1), variant=variant, probability_eps=eps
        ).loss
        gradients = torch.autograd.grad(loss, (logits, temperature, top_p))
        assert loss.item() == 0
        assert all((gradient == 0).all() for gradient in gradients)


# What counts


def test_easy_tokens_are_dropped_below_the_threshold_only() -> None:
    logits = row().repeat(4, 1)
    labels = torch.tensor([0, 0, 0, 1])  # argmax three times
    drop = torch.tensor([0.59, 0.6, 0.9, 0.0])
    per_row = reference.temperature_loss(
        logits, torch.ones(4), labels, drop_uniform=drop, reduction="none"
    )
    assert (per_row == 0).tolist() == [True, False, False, False]
    mean = reference.temperature_loss(logits, torch.ones(4), labels, drop_uniform=drop)
    torch.testing.assert_close(mean, per_row.sum() / 3)
    everything = reference.temperature_loss(
        logits, torch.ones(4), labels, drop_uniform=drop, easy_token_drop=0.0, reduction="none"
    )
    assert (everything != 0).all()


def test_easy_tokens_stay_in_the_released_soft_top_p_loss_and_leave_the_variant() -> None:
    logits, labels, half = row().repeat(2, 1), torch.tensor([0, 1]), torch.full((2,), 0.5)
    options = {"drop_uniform": torch.zeros(2), "reduction": "none"}
    released = reference.soft_top_p_loss(logits, torch.ones(2), half, labels, **options)
    megatron = reference.soft_top_p_loss(
        logits, torch.ones(2), half, labels, variant="megatron", **options
    )
    assert (released != 0).tolist() == [True, True]
    assert (megatron != 0).tolist() == [False, True]


def test_the_easy_token_is_the_lowest_index_among_equals() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0]])
    per_row = reference.temperature_loss(
        logits,
        torch.ones(2),
        torch.tensor([1, 2]),
        drop_uniform=torch.zeros(2),
        reduction="none",
    )
    assert (per_row == 0).tolist() == [True, False]


def test_ignored_positions_are_never_read() -> None:
    logits, temperature, top_p, labels = random_batch(6, 20, seed=6)
    expected = reference.autodeco_loss(logits[:4], temperature[:4], top_p[:4], labels[:4])
    spoiled = logits.clone()
    spoiled[4:] = NAN
    ignored = labels.clone()
    ignored[4:] = -100
    got = reference.autodeco_loss(spoiled, temperature, top_p, ignored)
    torch.testing.assert_close(got, expected)
    gradient = torch.autograd.grad(got.loss, temperature)[0]
    assert (gradient[4:] == 0).all() and (gradient[:4] != 0).all()
    other = reference.autodeco_loss(
        spoiled, temperature, top_p, ignored.where(ignored >= 0, 7), ignore_index=7
    )
    assert (labels[:4] != 7).all()
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("nothing", ["ignored", "dropped", "empty"])
def test_nothing_to_count_is_a_differentiable_zero(nothing: str, reduction: str) -> None:
    rows = 0 if nothing == "empty" else 3
    logits = row().float().repeat(rows, 1)
    temperature = torch.ones(rows, requires_grad=True)
    top_p = torch.full((rows,), 0.5, requires_grad=True)
    labels = torch.full((rows,), -100 if nothing == "ignored" else 0)
    loss = reference.autodeco_loss(
        logits,
        temperature,
        top_p,
        labels,
        drop_uniform=torch.zeros(rows),
        variant="megatron",
        reduction=reduction,
    ).loss
    assert (loss == 0).all()
    gradients = torch.autograd.grad(loss.sum(), (temperature, top_p))
    assert all((gradient == 0).all() for gradient in gradients)


def test_reductions_agree() -> None:
    logits, temperature, top_p, labels = random_batch(12, 20, seed=7)
    labels[::3] = -100
    batched = (logits.view(3, 4, 20), temperature.view(3, 4), top_p.view(3, 4), labels.view(3, 4))
    none, total, mean = (
        reference.autodeco_loss(*batched, reduction=name) for name in ("none", "sum", "mean")
    )
    assert none.loss.shape == (3, 4)
    assert ((none.loss == 0) == (batched[3] == -100)).all()
    torch.testing.assert_close(none.loss.sum(), total.loss)
    torch.testing.assert_close(total.loss / 8, mean.loss)


def test_the_widest_dtype_that_comes_in_is_used() -> None:
    logits = row().bfloat16()
    for dtype, expected in [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]:
        loss = reference.autodeco_loss(logits, one(1).to(dtype), one(1).to(dtype), label(1)).loss
        assert loss.dtype == expected


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"variant": "other"}, "temperature_loss: variant must be 'released' or 'megatron'"),
        ({"cumulative": "half"}, "soft_top_p_loss: cumulative must be 'inclusive' or 'exclusive'"),
        ({"reduction": "max"}, "temperature_loss: reduction must be 'mean', 'sum' or 'none'"),
        ({"labels": torch.tensor([0, 3])}, "labels must be in 0 .. 2 or -100, got 3 in row 1"),
        ({"labels": torch.tensor([0, -1])}, "labels must be in 0 .. 2 or -100, got -1 in row 1"),
        ({"labels": torch.tensor([0])}, r"labels must have shape \[2\], got \[1\]"),
        ({"temperature": torch.ones(2, 1)}, r"temperature must have shape \[2\], got \[2, 1\]"),
        ({"top_p": torch.ones(3)}, r"top_p must have shape \[2\], got \[3\]"),
        ({"drop_uniform": torch.ones(3)}, r"drop_uniform must have shape \[2\], got \[3\]"),
        ({"logits": torch.zeros(2, 0)}, r"logits must have shape \[..., V\] with V >= 1"),
        ({"steepness": -1.0}, "soft_top_p_loss: steepness must be finite and >= 0, got -1.0"),
        ({"mass_eps": INF}, "soft_top_p_loss: mass_eps must be finite and >= 0, got inf"),
        ({"temperature_clamp": NAN}, "temperature_loss: temperature_clamp must be finite and >= 0"),
        ({"easy_token_drop": 1.5}, r"easy_token_drop must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_explained(changes: dict, text: str) -> None:
    arguments = {"logits": row().repeat(2, 1), "labels": torch.tensor([0, 1])}
    arguments |= {"temperature": torch.ones(2), "top_p": torch.ones(2)}
    with pytest.raises(ValueError, match="^autodeco_ext.reference..*" + text):
        reference.autodeco_loss(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"logits": [[0.0]]}, "logits must be a floating point tensor, got list"),
        ({"logits": torch.zeros(2, 3).long()}, "logits must be a floating point tensor, got torch"),
        ({"labels": torch.zeros(2)}, "labels must be an int64 tensor, got torch.float32"),
        ({"temperature": 1.0}, "temperature must be a floating point tensor, got float"),
        ({"top_p": torch.ones(2).long()}, "top_p must be a floating point tensor, got torch.int64"),
    ],
)
def test_bad_types_are_explained(changes: dict, text: str) -> None:
    with pytest.raises(TypeError, match="^autodeco_ext.reference..*" + text):
        reference.autodeco_loss(**(three_rows() | changes))


def three_rows() -> dict:
    return {
        "logits": row().repeat(3, 1),
        "temperature": torch.ones(3),
        "top_p": torch.full((3,), 0.5),
        "labels": torch.tensor([0, 1, -100]),
    }


INVALID = [
    ("temperature", INF, "temperature must be finite and >= 0, got inf"),
    ("temperature", NAN, "temperature must be finite and >= 0, got nan"),
    ("temperature", -1.0, "temperature must be finite and >= 0, got -1.0"),
    ("top_p", NAN, r"top_p must be in \[0, 1\], got nan"),
    ("top_p", 1.5, r"top_p must be in \[0, 1\], got 1.5"),
    ("top_p", -0.5, r"top_p must be in \[0, 1\], got -0.5"),
    ("logits", NAN, "logits must not be NaN, got nan"),
    ("logits", INF, r"logits must not be \+inf, got inf"),
    ("logits", -INF, "logits must have a finite value, got -inf"),
]


@pytest.mark.parametrize(("name", "value", "text"), INVALID)
def test_an_invalid_row_is_named_where_it_has_a_label(name: str, value: float, text: str) -> None:
    arguments = three_rows()
    expected = reference.autodeco_loss(**arguments)
    arguments[name][2] = value  # of the ignored row
    assert torch.equal(reference.autodeco_loss(**arguments).loss, expected.loss)
    arguments[name][1] = value
    with pytest.raises(ValueError, match=f"{text} in row 1$"):
        reference.autodeco_loss(**arguments)


def test_a_temperature_of_zero_needs_a_clamp() -> None:
    arguments = three_rows()
    arguments["temperature"][1] = 0.0
    assert reference.autodeco_loss(**arguments).loss.isfinite()
    with pytest.raises(ValueError, match=r"must be > 0 where its clamp is 0, got 0.0 in row 1$"):
        reference.autodeco_loss(**arguments, variant="megatron")


def test_a_label_is_named_before_logits_and_logits_before_a_temperature() -> None:
    arguments = three_rows()
    for name, value in (("temperature", NAN), ("logits", NAN), ("labels", 7)):
        arguments[name][1] = value
        with pytest.raises(ValueError, match=f"{name} must .* in row 1$"):
            reference.autodeco_loss(**arguments)


def test_an_easy_token_that_is_dropped_must_be_valid_too() -> None:
    arguments = three_rows() | {"drop_uniform": torch.zeros(3)}
    arguments["temperature"][0] = NAN
    with pytest.raises(ValueError, match=r"temperature must be finite and >= 0, got nan in row 0$"):
        reference.autodeco_loss(**arguments)

"""The reference by hand-computable cases, an independent judge, and Hugging Face's warpers."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import ROW_KINDS, assert_kept, generator, judge_kept, make_rows
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from autodeco_ext import reference

INF, NAN = float("inf"), float("nan")


def kept(logits: list[float] | torch.Tensor, *parameters, **named) -> list[int]:
    """Indices of the kept tokens of one row."""
    mask = reference.kept_mask(torch.as_tensor(logits), *parameters, **named)
    return mask.nonzero()[:, 0].tolist()


# Section 1.1: scale


def test_probabilities_are_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([1.0, math.exp(0.5), math.exp(1.5)], dtype=torch.float64)
    got = reference.sampling_distribution(logits, temperature=2.0)
    torch.testing.assert_close(got, expected / expected.sum(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("temperature", [0.0, -0.0, 1e-46, 1e-45, 1e-38, 1e-5])
def test_small_temperatures_tend_to_the_argmax(temperature: float) -> None:
    probs = reference.sampling_distribution(torch.tensor([1.0, 2.0, 1.9]), temperature)
    assert probs.tolist() == [0.0, 1.0, 0.0]


def test_zero_temperature_takes_the_lowest_index_among_equals() -> None:
    assert kept([1.0, 2.0, 2.0], 0.0) == [1]
    assert kept([1.0, 2.0, 2.0], 1e-30) == [0, 1, 2]  # not greedy: no filter is on


def test_temperature_is_rounded_to_float32() -> None:
    logits = torch.tensor([0.0, 1.0], dtype=torch.float64)
    rounded = torch.tensor(0.1, dtype=torch.float32).item()
    got = reference.sampling_distribution(logits, 0.1)
    assert got[0].item() == pytest.approx(1 / (1 + math.exp(1 / rounded)), rel=1e-14)
    assert got[0].item() != pytest.approx(1 / (1 + math.exp(1 / 0.1)), rel=1e-10)


# Section 1.2: order


def test_order_is_descending_logit_then_ascending_index() -> None:
    logits = [1.0, 3.0, 2.0, 3.0, 2.0]
    assert [kept(logits, top_k=k) for k in (1, 2, 3, 4)] == [[1], [1, 3], [1, 2, 3], [1, 2, 3, 4]]


def test_negative_zero_equals_positive_zero() -> None:
    assert kept([-0.0, 0.0, -0.0], top_k=1) == [0]
    assert kept([0.0, -0.0, 0.0], top_k=2) == [0, 1]
    assert kept([-0.0, 0.0], 0.0) == [0]


@pytest.mark.parametrize("vocab", [5, 200, 70_000])
def test_long_runs_of_ties_stay_in_index_order(vocab: int) -> None:
    logits = torch.zeros(vocab)
    logits[::2] = -0.0
    assert kept(logits, top_k=vocab // 2) == list(range(vocab // 2))


def test_order_is_that_of_the_logits_where_the_scaled_ones_collide() -> None:
    # 1 / T underflows the difference to nothing in float32, but token 1 still comes first.
    logits = torch.tensor([1.0, 1.0000001, 0.0])
    assert kept(logits, 3e38, top_k=1, dtype=torch.float32) == [1]


# Section 1.3: filters


def test_top_k_off_values() -> None:
    logits = [1.0, 2.0, 3.0]
    for off in (None, 0, 3, 4, 2**62, torch.tensor(0), torch.tensor(3)):
        assert kept(logits, top_k=off) == [0, 1, 2]


def test_top_p_keeps_the_shortest_prefix_that_reaches_it() -> None:
    logits = torch.tensor([0.0, 0.0, 0.0, 0.0])  # a quarter each, exactly
    lengths = {0.2: 1, 0.25: 1, 0.26: 2, 0.5: 2, 0.75: 3, 0.76: 4}
    assert {p: len(kept(logits, top_p=p)) for p in lengths} == lengths


@pytest.mark.parametrize("top_p", [0.0, -0.5, -INF])
def test_top_p_of_zero_or_less_keeps_the_first_token(top_p: float) -> None:
    assert kept([0.0, 1.0, 1.0], top_p=top_p) == [1]


@pytest.mark.parametrize("top_p", [1.0, 1.5, INF])
def test_top_p_of_one_or_more_removes_nothing(top_p: float) -> None:
    # Token 1 has probability exp(-800), which is 0 also in float64: still kept.
    assert kept([0.0, -800.0, -1.0], top_p=top_p) == [0, 1, 2]
    assert kept([0.0, -800.0, -1.0], top_p=0.9999999) == [0, 2]


def test_top_p_works_on_what_top_k_kept() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(logits, top_p=0.55) == [0, 1]
    assert kept(logits, top_p=0.55, top_k=2) == [0]  # 0.4 / 0.7 = 0.571


def test_min_p_is_relative_to_the_largest_and_follows_top_p() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    assert kept(logits, min_p=0.49) == [0, 1, 2]
    assert kept(logits, min_p=0.51) == [0, 1]
    assert kept(logits, top_p=0.39, min_p=0.49) == [0]
    for off in (None, 0.0, -1.0):
        assert kept(logits, min_p=off) == [0, 1, 2, 3]


def test_min_p_of_one_keeps_ties_and_above_one_the_first_token() -> None:
    assert kept([2.0, 1.0, 2.0], min_p=1.0) == [0, 2]
    assert kept([1.0, 2.0, 2.0], min_p=1.1) == [1]
    assert kept([1.0, 2.0, 2.0], min_p=INF) == [1]


def test_minus_infinity_and_columns_beyond_valid_vocab_do_not_exist() -> None:
    assert kept([1.0, -INF, 3.0, NAN], valid_vocab=3) == [0, 2]
    assert kept([1.0, -INF, 3.0, 2.0], top_k=3) == [0, 2, 3]
    assert kept([1.0, 5.0, 3.0], 0.0, valid_vocab=1) == [0]
    assert kept([1.0, 2.0], valid_vocab=7) == [0, 1]


def test_one_token_is_always_drawn() -> None:
    logits = torch.tensor([[-3.0]])
    info = reference.sample(logits, 0.7, 0.1, 1, 2.0, seed=5, return_info=True)
    assert [value.item() for value in info] == [0, 0.0, 0.0, 1, 0.0, True]


def test_parameters_are_per_row_and_broadcast() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(2, 3, 4)
    counts = reference.kept_mask(logits, top_k=torch.tensor([1, 2, 3])).sum(-1)
    assert counts.tolist() == [[1, 2, 3], [1, 2, 3]]
    counts = reference.kept_mask(logits, top_p=torch.tensor([[0.1], [0.75]])).sum(-1)
    assert counts.tolist() == [[1, 1, 1], [3, 3, 3]]


def test_filtered_logits_keep_scaled_values() -> None:
    logits = torch.tensor([[4.0, 2.0, 1.0], [4.0, 2.0, 6.0]])
    got = reference.filter_logits(logits, torch.tensor([0.5, 0.0]), top_k=2, filter_value=-9.0)
    assert got.tolist() == [[8.0, 4.0, -9.0], [-9.0, -9.0, 6.0]]
    saturated = reference.filter_logits(torch.tensor([1.0, -1.0]), 1e-45)
    limit = torch.finfo(torch.float32).max
    assert saturated.tolist() == [limit, -limit]


# The judge, and random rows


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("vocab", [1, 2, 17, 1000])
def test_kept_sets_of_random_rows_are_right(kind: str, vocab: int) -> None:
    rows, random = 200, generator(vocab)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = make_rows(kind, rows, vocab, dtype, random)
        temperature = 2 * torch.rand(rows, generator=random)
        top_p = 1.2 * torch.rand(rows, generator=random)
        top_k = torch.randint(0, vocab + 2, (rows,), generator=random)
        min_p = torch.rand(rows, generator=random) ** 4 * 1.1
        temperature[::9], top_p[::8], top_k[::2], min_p[::3] = 0, 0, 0, 0
        mask = reference.kept_mask(logits, temperature, top_p, top_k, min_p)
        assert_kept(logits, mask, temperature, top_p, top_k, min_p)


def test_the_judge_rejects_every_other_set() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(16, 4)
    every = torch.tensor([[bool(i >> j & 1) for j in range(4)] for i in range(16)])
    for named, right in [
        ({"top_p": 0.6}, [1, 1, 0, 0]),
        ({"top_k": 3}, [1, 1, 1, 0]),
        ({"min_p": 0.6}, [1, 1, 0, 0]),
        ({"top_p": 1.0}, [1, 1, 1, 1]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"top_p": 0.95, "valid_vocab": 2}, [1, 1, 0, 0]),
        ({"top_k": 2, "top_p": 0.5, "min_p": 0.1}, [1, 0, 0, 0]),
    ]:
        expected = (every == torch.tensor(right).bool()).all(-1)
        assert torch.equal(judge_kept(logits, every, **named), expected), named
        counts = every.sum(-1)
        assert torch.equal(judge_kept(logits, counts, **named), counts == sum(right)), named


def test_the_judge_allows_slack_at_the_cut_only() -> None:
    logits = torch.zeros(2, 4)
    one_or_two = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    assert judge_kept(logits, one_or_two, top_p=0.25 + 1e-6).tolist() == [True, True]
    assert judge_kept(logits, one_or_two, top_p=0.25 + 3e-6).tolist() == [False, True]
    assert judge_kept(logits, one_or_two, top_p=0.25 - 3e-6).tolist() == [True, False]
    tied = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    halves = torch.tensor([0.0, -1.0, -1.0, -5.0]).expand(2, 4)
    assert judge_kept(halves, tied, min_p=math.exp(-1)).tolist() == [False, True]
    with pytest.raises(AssertionError, match="1 of 2 kept sets are wrong; first row 0 keeps 2"):
        assert_kept(halves, tied, min_p=math.exp(-1))


# Hugging Face


@pytest.mark.parametrize(
    "parameters",
    [(0.7, 0.9, 0, 0.0), (1.3, 1.0, 20, 0.0), (0.9, 1.0, 0, 0.05), (1.1, 0.8, 50, 0.02)],
)
def test_filtered_logits_are_those_of_the_hugging_face_warpers(parameters) -> None:
    temperature, top_p, top_k, min_p = parameters
    logits = torch.randn(64, 1000, generator=generator(3), dtype=torch.float64) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    got = reference.filter_logits(logits, temperature, top_p, top_k, min_p)
    assert torch.equal(got.isinf(), expected.isinf())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)  # temperature is float32 here


# Bad input


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": NAN}, "temperature must be finite and >= 0, got nan in row 3"),
        ({"temperature": -1.0}, "temperature must be finite and >= 0, got -1.0 in row 3"),
        ({"temperature": 1e39}, "temperature must be finite and >= 0, got inf in row 3"),
        ({"top_p": NAN}, "top_p must not be NaN, got nan in row 3"),
        ({"top_k": -1}, "top_k must be >= 0, got -1 in row 3"),
        ({"min_p": NAN}, "min_p must not be NaN, got nan in row 3"),
        ({"valid_vocab": 0}, "valid_vocab must be >= 1, got 0 in row 3"),
    ],
)
def test_a_bad_parameter_names_its_row(changes: dict[str, float], text: str) -> None:
    ((name, bad),) = changes.items()
    good = torch.ones(5, dtype=torch.float64 if isinstance(bad, float) else torch.int64)
    good[3] = bad
    with pytest.raises(ValueError) as error:
        reference.sample(torch.zeros(5, 4), **{name: good}, seed=0)
    assert str(error.value) == f"autodeco_ext.reference.sample: {text}"
    with pytest.raises(ValueError) as error:
        reference.kept_mask(torch.zeros(5, 4), **{name: bad})
    expected = text.replace("got inf", "got 1e+39").removesuffix(" in row 3")
    assert str(error.value) == f"autodeco_ext.reference.kept_mask: {expected}"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([0.0, NAN], "logits must not be NaN, got nan in row 2"),
        ([0.0, INF], "logits must not be +inf, got inf in row 2"),
        ([-INF, -INF], "logits must have a finite value, got -inf in row 2"),
    ],
)
def test_a_bad_row_of_logits_is_named(row: list[float], text: str) -> None:
    logits = torch.zeros(2, 2, 2)
    logits[1, 0] = torch.tensor(row)
    for op in (reference.sampling_distribution, reference.distribution_stats):
        with pytest.raises(ValueError) as error:
            op(logits)
        assert str(error.value) == f"autodeco_ext.reference.{op.__name__}: {text}"


def test_the_first_bad_row_is_the_one_named() -> None:
    logits = torch.zeros(4, 2)
    logits[1, 0] = NAN
    with pytest.raises(ValueError, match="logits must not be NaN, got nan in row 1"):
        reference.kept_mask(logits, torch.tensor([1.0, 1.0, -1.0, NAN]))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"logits": torch.zeros(2, 3).long()}, TypeError, "logits must be a floating point tensor"),
        ({"logits": [0.0]}, TypeError, "logits must be a floating point tensor, got list"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating point torch.dtype"),
        ({"dtype": "float64"}, TypeError, "dtype must be a floating point torch.dtype"),
        (
            {"logits": torch.tensor(1.0)},
            ValueError,
            r"logits must have shape \[..., V\] with V >= 1",
        ),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"with V >= 1, got \[2, 0\]"),
        ({"temperature": "1"}, TypeError, "temperature must be a number or a tensor, got str"),
        ({"temperature": torch.ones(3)}, ValueError, r"must broadcast to \[2\], got \[3\]"),
        ({"temperature": torch.ones(2).bool()}, TypeError, "must be a real tensor, got torch.bool"),
        ({"top_k": 1.5}, TypeError, "top_k must be an int or a tensor, got float"),
        ({"top_k": torch.ones(2)}, TypeError, "top_k must be an integer tensor, got torch.float32"),
        ({"min_p": torch.ones(2, device="meta")}, ValueError, "min_p must be on cpu, got meta"),
        ({"seed": torch.zeros(3).long()}, ValueError, r"seed must broadcast to \[2\], got \[3\]"),
        ({"seed": torch.zeros(2)}, TypeError, "seed must be an int or an int64 tensor"),
        ({"seed": 0.5}, TypeError, "seed must be an int or an int64 tensor, got float"),
        ({"offset": torch.zeros(2, 2).long()}, ValueError, "offset must broadcast to"),
        ({"num_samples": 0}, ValueError, "num_samples must be an int >= 1, got 0"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^autodeco_ext.reference.sample: .*" + text):
        reference.sample(**({"logits": torch.zeros(2, 3), "seed": 0} | arguments))


def test_zero_rows_give_empty_results() -> None:
    logits = torch.zeros(0, 7)
    assert reference.kept_mask(logits, top_p=0.5).shape == (0, 7)
    assert reference.sample(logits, seed=0).shape == (0,)
    assert reference.sample(logits, seed=0, num_samples=3).shape == (0, 3)
    assert reference.distribution_stats(logits).shape == (0, 4)


# Head features


def test_statistics_of_a_uniform_and_of_a_known_row() -> None:
    third = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    got = reference.distribution_stats(third.log(), 1.0)
    entropy = -(third * (third + 1e-8).log()).sum().item()
    assert got.tolist() == pytest.approx([0.5, entropy, third.var().item(), 1.0], rel=1e-7)
    uniform = reference.distribution_stats(torch.zeros(10), 0.3)
    assert uniform.tolist() == pytest.approx([0.1, math.log(10), 0.0, 0.5], rel=1e-6, abs=1e-12)


def test_statistics_accept_zero_temperature_masks_and_one_column() -> None:
    greedy = reference.distribution_stats(torch.tensor([1e4, 1e4 - 1, 0.0]), 0.0)
    assert greedy.tolist() == pytest.approx([1.0, 0.0, 1 / 3, 1.0], abs=2e-8)
    masked = reference.distribution_stats(torch.tensor([0.0, -INF, 0.0, -INF]), 1.0)
    assert masked.tolist() == pytest.approx([0.5, math.log(2), 1 / 12, 1.0], rel=1e-6)
    assert reference.distribution_stats(torch.tensor([3.0]), 1.0).tolist() == pytest.approx(
        [1.0, 0.0, 0.0, 1.0], abs=2e-8
    )


def test_head_features_detach_the_temperature() -> None:
    hidden = torch.zeros(2, 4, requires_grad=True)
    temperature = torch.tensor([0.5, 1.5], requires_grad=True)
    logits = torch.randn(2, 9, generator=generator(0))
    features = reference.head_features(hidden, logits, temperature)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features[:, 5:].double(),
        reference.distribution_stats(logits, temperature),
        rtol=1e-6,
        atol=0,
    )
    assert features[:, 4].tolist() == [0.5, 1.5]
    features.sum().backward()
    assert temperature.grad is None
    assert torch.equal(hidden.grad, torch.ones(2, 4))
    assert reference.head_features(hidden, logits, temperature, enhanced=False).shape == (2, 5)

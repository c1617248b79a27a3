"""`sample` against the float64 reference, the kept-set rule and the distribution it must follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import (
    DRAW_SLACK,
    ROW_KINDS,
    assert_close,
    assert_kept,
    draw_errors,
    generator,
    make_rows,
    random_parameters,
    tokens_pvalue,
)

import autodeco_ext
from autodeco_ext import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF = float("inf")


# Rows per kind and dtype: 16,740 in all. The wide ones are few because the judge sorts in float64.
SHAPES = [(1, 50), (2, 50), (17, 400), (1000, 400), (32000, 20), (151936, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize(("vocab", "rows"), SHAPES)
def test_kept_set_is_right(op_device: str, kind: str, vocab: int, rows: int) -> None:
    for number, dtype in enumerate(DTYPES):
        logits = make_rows(kind, rows, vocab, dtype, generator(vocab + number))
        parameters = random_parameters(rows, vocab, seed=7 * vocab + number)
        info = autodeco_ext.sample(logits, **parameters, seed=1, return_info=True)
        filtered = autodeco_ext.filter_logits(logits, **parameters)
        kept = filtered > -INF
        assert_kept(logits, kept, **parameters)
        assert torch.equal(info.kept, kept.sum(-1))
        assert kept.gather(-1, info.tokens[:, None]).all()


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_backend_keeps_the_right_set(backend: str, kind: str, dtype: torch.dtype) -> None:
    for vocab in (1, 2, 17, 1000):
        logits = make_rows(kind, 200, vocab, dtype, generator(vocab))
        parameters = random_parameters(200, vocab, seed=vocab)
        assert_kept(logits, autodeco_ext.filter_logits(logits, **parameters) > -INF, **parameters)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["peaked", "gaussian", "masked"])
def test_tokens_and_info_match_the_reference(backend: str, kind: str, dtype: torch.dtype) -> None:
    logits = make_rows(kind, 400, 1003, dtype, generator(5))
    random = generator(6)
    temperature = 0.2 + torch.rand(400, generator=random)
    seed = torch.randint(-(2**62), 2**62, (400,), generator=random)
    parameters = {"temperature": temperature, "top_p": 0.93, "min_p": 1e-4, "valid_vocab": 1000}
    keys = {"seed": seed, "offset": 11, "num_samples": 3}
    got = autodeco_ext.sample(logits, **parameters, **keys, return_info=True)
    expected = reference.sample(logits, **parameters, **keys, return_info=True)
    same_set = got.kept == expected.kept  # the rule allows a difference within 2e-6 at the cut
    assert same_set.float().mean() > 0.99
    # A draw may differ where the uniform number is within rounding of a boundary.
    assert (got.tokens == expected.tokens)[same_set].float().mean() > 0.999
    same = same_set & (got.tokens == expected.tokens).all(-1)
    for field in ("logprobs", "raw_logprobs", "log_kept_mass"):
        assert_close(getattr(got, field)[same], getattr(expected, field)[same], dtype, field)
    assert got.valid.all()


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draw_is_where_its_uniform_number_falls(
    backend: str, kind: str, dtype: torch.dtype
) -> None:
    logits = make_rows(kind, 200, 1000, dtype, generator(21))
    parameters = random_parameters(200, 1000, seed=22)
    seed = torch.randint(-(2**62), 2**62, (200,), generator=generator(23))
    tokens = autodeco_ext.sample(logits, **parameters, seed=seed)
    kept = autodeco_ext.filter_logits(logits, **parameters) > -INF
    uniform = reference.philox_uniform(seed)
    temperature = parameters["temperature"]
    assert draw_errors(logits, kept, tokens, uniform, temperature).max() < DRAW_SLACK
    # The token of another row is seen to be wrong.
    wrong = tokens.roll(1)
    assert (draw_errors(logits, kept, wrong, uniform, temperature) > DRAW_SLACK).any()


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.0},
        {"temperature": 1.7, "top_p": 0.8},
        {"temperature": 0.6, "top_k": 20},
        {"temperature": 1.2, "top_p": 0.95, "min_p": 0.02, "top_k": 60},
    ],
)
def test_frequencies_follow_the_distribution(backend: str, parameters: dict[str, float]) -> None:
    logits = make_rows("gaussian", 1, 300, torch.float32, generator(3))
    probs = reference.sampling_distribution(logits, **parameters)[0]
    tokens = autodeco_ext.sample(logits, **parameters, seed=17, num_samples=200_000)
    assert tokens_pvalue(tokens, probs) > 1e-3
    rows = autodeco_ext.sample(logits.expand(50_000, -1), **parameters, seed=18)
    assert tokens_pvalue(rows, probs) > 1e-3


def test_a_wrong_sampler_fails_the_frequency_test() -> None:
    logits = make_rows("gaussian", 1, 300, torch.float32, generator(3))
    probs = reference.sampling_distribution(logits, 1.0, 0.95)[0]
    wrong = autodeco_ext.sample(logits, 1.05, 0.95, seed=17, num_samples=200_000)
    assert tokens_pvalue(wrong, probs) < 1e-6


def test_rare_tokens_are_drawn_at_their_rate(op_device: str) -> None:
    # 150,000 tokens of about 1e-9 each beside one that has nearly everything.
    logits = torch.zeros(1, 150_001)
    logits[0, 0] = 20.7
    rate = 1 - float(reference.sampling_distribution(logits)[0, 0])
    tokens = autodeco_ext.sample(logits, seed=5, num_samples=1_000_000)[0]
    rare = tokens[tokens > 0]
    assert abs(len(rare) - rate * 1_000_000) < 5 * (rate * 1_000_000) ** 0.5
    halves = (rare > 75_000).float().mean()
    assert abs(halves - 0.5) < 5 * 0.5 / len(rare) ** 0.5


def test_ties_at_the_boundary_keep_the_lowest_indices(backend: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 3.0]])
    kept = autodeco_ext.filter_logits(logits, top_k=2)[0] > -INF
    assert kept.tolist() == [False, True, False, True, False, False]
    kept = autodeco_ext.filter_logits(torch.zeros(1, 8), top_p=0.5)[0] > -INF
    assert kept.tolist() == [True] * 4 + [False] * 4
    signed_zeros = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    assert (autodeco_ext.filter_logits(signed_zeros, top_k=3)[0] > -INF).tolist() == [
        True,
        True,
        True,
        False,
    ]


def test_zero_temperature_takes_the_lowest_index_of_the_maximum(backend: str) -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0], [-INF, -0.0, 0.0]])
    info = autodeco_ext.sample(logits, 0.0, seed=1, return_info=True)
    assert info.tokens.tolist() == [1, 1]
    # Parameters are rounded to float32 first.
    assert autodeco_ext.sample(logits, -1e-50, seed=1).tolist() == [1, 1]
    assert info.kept.tolist() == [1, 1]
    assert info.logprobs.tolist() == [0.0, 0.0]
    assert info.log_kept_mass.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20, 1e-6, 1e20, 3e38])
def test_extreme_temperatures_tend_to_argmax_or_uniform(backend: str, temperature: float) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0, -1e-45], [1.0, 2.0, 3.0, 4.0]])
    info = autodeco_ext.sample(logits, temperature, seed=2, num_samples=500, return_info=True)
    expected = reference.sampling_distribution(logits, temperature)
    assert torch.isfinite(info.logprobs).all()
    assert torch.isfinite(info.raw_logprobs).all()
    for row in range(2):
        assert tokens_pvalue(info.tokens[row], expected[row]) > 1e-4


def test_all_filters_off_keeps_every_finite_token(op_device: str) -> None:
    logits = torch.tensor([[0.0, -200.0, -INF, 1.0]])
    info = autodeco_ext.sample(logits, top_p=1.0, seed=1, return_info=True)
    assert info.kept.item() == 3
    assert info.log_kept_mass.item() == 0.0


def test_excluded_tokens_and_missing_columns_are_never_drawn(op_device: str) -> None:
    logits = torch.zeros(1, 10)
    logits[0, :3] = -INF
    tokens = autodeco_ext.sample(logits, 5.0, seed=1, num_samples=5000, valid_vocab=6)
    assert set(tokens[0].tolist()) == {3, 4, 5}
    per_row = autodeco_ext.sample(
        torch.zeros(3, 10), seed=1, num_samples=500, valid_vocab=torch.tensor([1, 2, 99])
    )
    assert per_row.amax(-1).tolist() == [0, 1, 9]


def test_a_row_does_not_depend_on_its_batch_or_place(backend: str) -> None:
    logits = make_rows("gaussian", 64, 4001, torch.float32, generator(8))
    parameters = random_parameters(64, 4001, seed=9)
    seed = torch.arange(64) * 1_000_003
    whole = autodeco_ext.sample(logits, **parameters, seed=seed, return_info=True)
    order = torch.randperm(64, generator=generator(10))
    moved = autodeco_ext.sample(
        logits[order],
        **{name: value[order] for name, value in parameters.items()},
        seed=seed[order],
        return_info=True,
    )
    alone = autodeco_ext.sample(
        logits[5:6],
        **{name: value[5:6] for name, value in parameters.items()},
        seed=seed[5:6],
        return_info=True,
    )
    for field in whole._fields:
        assert torch.equal(getattr(whole, field)[order], getattr(moved, field))
        assert torch.equal(getattr(whole, field)[5:6], getattr(alone, field))


# Rows that cost unlike times, taken one by one; and small ones, taken by hundreds, not all full.
@pytest.mark.parametrize(("rows", "vocab"), [(40, 20_000), (1001, 100)])
def test_results_do_not_depend_on_the_number_of_threads(
    cpu_backend: str, rows: int, vocab: int, set_num_threads: Callable[[int], None]
) -> None:
    logits = make_rows("gaussian", rows, vocab, torch.float32, generator(8))
    temperature = torch.linspace(0, 3, rows)
    top_p = torch.linspace(0.1, 1, rows)
    results = []
    for threads in (1, 2, 3, 5):
        set_num_threads(threads)
        for _ in range(2):
            info = autodeco_ext.sample(logits, temperature, top_p, seed=3, return_info=True)
            results.append(info)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_any_row_stride_is_read_in_place(backend: str) -> None:
    base = make_rows("gaussian", 24, 130, torch.bfloat16, generator(4))
    padded = base[:, :100]
    assert torch.equal(
        autodeco_ext.sample(padded, seed=1), autodeco_ext.sample(padded.contiguous(), seed=1)
    )
    cube = base.view(4, 6, 130)
    for view in (cube[:, -1, 1:], cube[:, ::2, :77], cube.transpose(0, 1), cube[1:3, 1::2, 3:120]):
        seed = torch.arange(view[..., 0].numel()).view(view.shape[:-1])
        expected = autodeco_ext.sample(view.contiguous(), top_p=0.9, seed=seed)
        assert torch.equal(autodeco_ext.sample(view, top_p=0.9, seed=seed), expected)
        stats = autodeco_ext.distribution_stats(view)
        assert torch.equal(stats, autodeco_ext.distribution_stats(view.contiguous()))


def test_shapes_of_the_outputs(op_device: str) -> None:
    assert autodeco_ext.sample(torch.zeros(5), seed=1).shape == ()
    assert autodeco_ext.sample(torch.zeros(0, 5), seed=1).shape == (0,)
    assert autodeco_ext.sample(torch.zeros(2, 0, 5), seed=1, num_samples=4).shape == (2, 0, 4)
    info = autodeco_ext.sample(torch.zeros(2, 3, 5), seed=1, num_samples=4, return_info=True)
    assert info.tokens.shape == info.logprobs.shape == info.raw_logprobs.shape == (2, 3, 4)
    assert info.kept.shape == info.log_kept_mass.shape == info.valid.shape == (2, 3)
    assert autodeco_ext.sample(torch.zeros(3, 1), seed=1).tolist() == [0, 0, 0]


def test_parameters_broadcast_to_the_rows(op_device: str) -> None:
    logits = make_rows("gaussian", 12, 50, torch.float32, generator(2)).view(3, 4, 50)
    temperature = torch.tensor([0.5, 1.0, 2.0])[:, None]
    seed = torch.arange(12).view(3, 4)
    got = autodeco_ext.sample(logits, temperature, seed=seed)
    assert torch.equal(got, autodeco_ext.sample(logits, temperature.expand(3, 4), seed=seed))
    whole = autodeco_ext.sample(logits, torch.tensor(0.5), seed=seed)
    assert torch.equal(whole, autodeco_ext.sample(logits, 0.5, seed=seed))


def test_a_scalar_seed_gives_row_r_the_offset_plus_r(op_device: str) -> None:
    logits = make_rows("gaussian", 30, 500, torch.float32, generator(2))
    rows = torch.arange(30)
    expected = autodeco_ext.sample(logits, seed=torch.full((30,), 9), offset=rows + 4)
    assert torch.equal(autodeco_ext.sample(logits, seed=9, offset=4), expected)
    assert torch.equal(autodeco_ext.sample(logits, seed=torch.tensor(9), offset=4), expected)
    assert torch.equal(autodeco_ext.sample(logits, seed=9, offset=torch.tensor(4)), expected)
    scalars = {"seed": torch.tensor(9), "offset": torch.tensor(4)}
    assert torch.equal(autodeco_ext.sample(logits, **scalars), expected)
    same = autodeco_ext.sample(logits[:1].expand(30, -1), seed=torch.full((30,), 9))
    assert len(set(same.tolist())) == 1
    # Seeds are bit patterns: 2^64 - 1 is -1.
    assert torch.equal(
        autodeco_ext.sample(logits, seed=2**64 - 1), autodeco_ext.sample(logits, seed=-1)
    )


def test_the_first_of_many_samples_is_the_single_draw(op_device: str) -> None:
    logits = make_rows("gaussian", 30, 500, torch.float32, generator(2))
    many = autodeco_ext.sample(logits, seed=9, num_samples=130)
    assert torch.equal(many[:, 0], autodeco_ext.sample(logits, seed=9))
    assert torch.equal(many[:, :70], autodeco_ext.sample(logits, seed=9, num_samples=70))


def test_the_torch_generator_reproduces_draws(device: torch.device) -> None:
    logits = make_rows("gaussian", 30, 500, torch.float32, generator(2)).to(device)
    torch.manual_seed(3)
    first = autodeco_ext.sample(logits)
    second = autodeco_ext.sample(logits)
    torch.manual_seed(3)
    assert torch.equal(autodeco_ext.sample(logits), first)
    assert not torch.equal(first, second)
    given = [torch.Generator(device).manual_seed(4) for _ in range(2)]
    assert torch.equal(
        autodeco_ext.sample(logits, generator=given[0]),
        autodeco_ext.sample(logits, generator=given[1]),
    )

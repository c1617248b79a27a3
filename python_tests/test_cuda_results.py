"""What CUDA returns: the CPU's tokens, whatever the launch shape, for every vocabulary and layout.

The tests that run on every backend (test_sample.py and others) judge CUDA as well; here is what
only CUDA needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import OpsOnDevice
from oracle import (
    DRAW_SLACK,
    ROW_KINDS,
    assert_kept,
    draw_errors,
    generator,
    make_rows,
    random_parameters,
)
from tiny_models import tiny_heads
from torch import Tensor

import autodeco_ext
from autodeco_ext import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF = float("inf")


def assert_same_bits(got: Any, expected: Any, what: str) -> None:
    """Two outputs of an op, tensors or tuples of them."""
    got, expected = ((x,) if isinstance(x, Tensor) else x for x in (got, expected))
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        a, b = (x.view(torch.int32) if x.dtype == torch.float32 else x for x in (a, b))
        assert torch.equal(a, b), f"{what}: output {number} differs"


# Parameters are random over their whole range, so rows are greedy, unfiltered, cut by any filter.
@pytest.mark.parametrize(("vocab", "rows"), [(1000, 600), (32_000, 20), (151_936, 8)])
def test_tokens_are_the_cpus_but_for_draws_within_rounding(
    cuda: torch.device, count: Callable[[str], None], vocab: int, rows: int
) -> None:
    ops = OpsOnDevice(cuda)
    sample, filter_logits = ops.wrap(autodeco_ext.sample), ops.wrap(autodeco_ext.filter_logits)
    total = other_set = other_token = 0
    for kind in ROW_KINDS:
        for number, dtype in enumerate(DTYPES):
            logits = make_rows(kind, rows, vocab, dtype, generator(vocab + number))
            parameters = random_parameters(rows, vocab, seed=3 * vocab + number)
            seed = torch.randint(-(2**62), 2**62, (rows,), generator=generator(number))
            results = {}
            for name, draw, cut in (
                ("cpu", autodeco_ext.sample, autodeco_ext.filter_logits),
                ("cuda", sample, filter_logits),
            ):
                tokens = draw(logits, **parameters, seed=seed, offset=7)
                kept = cut(logits, **parameters) > -INF
                assert_kept(logits, kept, **parameters)
                uniform = reference.philox_uniform(seed, 7)
                errors = draw_errors(logits, kept, tokens, uniform, parameters["temperature"])
                assert errors.max() < DRAW_SLACK, f"{name}, {kind}, {dtype}"
                results[name] = (tokens, kept)
            same_set = (results["cpu"][1] == results["cuda"][1]).all(-1)
            total += rows
            other_set += int((~same_set).sum())
            other_token += int((results["cpu"][0] != results["cuda"][0])[same_set].sum())
    count(
        f"CPU and CUDA, V = {vocab}: {total} rows, {other_token} other tokens (all within "
        f"{DRAW_SLACK} of a boundary), {other_set} other kept sets (all within the rule)"
    )
    # Every difference has been judged above; this bounds how many rounding may explain.
    assert other_token <= 1 + total // 100
    assert other_set <= 1 + total // 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["peaked", "gaussian", "flat"])
def test_a_row_does_not_depend_on_the_launch_shape(
    cuda: torch.device, kind: str, dtype: torch.dtype
) -> None:
    # From 8 blocks a row to one; see csrc/cuda/team.h.
    vocab, most = 151_936, 700
    logits = make_rows(kind, 40, vocab, dtype, generator(1)).to(cuda)
    logits = logits.repeat(most // 40 + 1, 1)[:most]
    parameters = {
        name: value.to(cuda) for name, value in random_parameters(most, vocab, seed=2).items()
    }
    seed = torch.arange(most, device=cuda) * 1_000_003

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        chosen = {name: value[rows] for name, value in parameters.items()}
        info = autodeco_ext.sample(logits[rows], **chosen, seed=seed[rows], return_info=True)
        filtered = autodeco_ext.filter_logits(logits[rows], **chosen)
        stats = autodeco_ext.distribution_stats(logits[rows], chosen["temperature"])
        return (*info, filtered, stats)

    # The rows that are compared, first in a batch of 700, in which no two have the same key.
    whole = [output[:40] for output in run(torch.arange(most, device=cuda))]
    for rows in (200, 100, 40):
        got = [output[:40] for output in run(torch.arange(rows, device=cuda))]
        assert_same_bits(got, whole, f"{rows} rows")
    for rows in ([5], [39, 0, 17]):
        places = torch.tensor(rows, device=cuda)
        assert_same_bits(run(places), [output[places] for output in whole], f"rows {rows}")
    moved = torch.cat([torch.arange(40, most, device=cuda), torch.arange(40, device=cuda)])
    assert_same_bits([output[-40:] for output in run(moved)], whole, "another place")
    again = [output[:40] for output in run(torch.arange(most, device=cuda))]
    assert_same_bits(again, whole, "the same call again")


@pytest.mark.parametrize("vocab", [1, 2, 17, 1000, 32_000, 151_936, 262_144, 2**20])
def test_every_vocabulary(cuda: torch.device, vocab: int) -> None:
    ops = OpsOnDevice(cuda)
    rows = 24 if vocab <= 1000 else 4
    for number, dtype in enumerate(DTYPES):
        for kind in ROW_KINDS:
            logits = make_rows(kind, rows, vocab, dtype, generator(vocab + number))
            parameters = random_parameters(rows, vocab, seed=5 * vocab + number)
            seed = torch.arange(rows) + 100 * number
            info = ops.wrap(autodeco_ext.sample)(logits, **parameters, seed=seed, return_info=True)
            kept = ops.wrap(autodeco_ext.filter_logits)(logits, **parameters) > -INF
            assert_kept(logits, kept, **parameters)
            assert torch.equal(info.kept, kept.sum(-1))
            temperature = parameters["temperature"]
            uniform = reference.philox_uniform(seed)
            errors = draw_errors(logits, kept, info.tokens, uniform, temperature)
            assert errors.max() < DRAW_SLACK, kind
            stats = ops.wrap(autodeco_ext.distribution_stats)(logits, temperature)
            expected = autodeco_ext.distribution_stats(logits, temperature)
            torch.testing.assert_close(stats, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 300])
def test_alignment_and_strides_do_not_change_a_bit(
    cuda: torch.device, rows: int, dtype: torch.dtype
) -> None:
    vocab = 32_003
    logits = make_rows("gaussian", rows, vocab, dtype, generator(4)).to(cuda)
    seed = torch.arange(rows, device=cuda)

    def run(view: Tensor) -> tuple[Tensor, ...]:
        info = autodeco_ext.sample(view, 0.9, 0.95, 5000, seed=seed, return_info=True)
        filtered = autodeco_ext.filter_logits(view, 0.9, 0.95, 5000)
        return (*info, filtered, autodeco_ext.distribution_stats(view, 0.9))

    expected = run(logits)
    for shift in (1, 2, 3, 4, 5, 7, 8, 9):
        for padding in (0, 5, 13):  # with 13, rows are 32,016 elements apart
            # What lies around the rows would make them invalid.
            memory = torch.full(
                (shift + rows * (vocab + padding),), torch.nan, dtype=dtype, device=cuda
            )
            view = memory[shift:].view(rows, vocab + padding)[:, :vocab]
            view.copy_(logits)
            assert_same_bits(run(view), expected, f"shift {shift}, padding {padding}")


def test_filtering_in_place_gives_what_filtering_into_new_memory_gives(cuda: torch.device) -> None:
    for rows in (2, 300):
        logits = make_rows("gaussian", rows, 32_003, torch.float32, generator(6)).to(cuda)
        top_p = torch.linspace(0, 1, rows, device=cuda)
        expected = autodeco_ext.filter_logits(logits, 0.8, top_p)
        assert autodeco_ext.filter_logits(logits, 0.8, top_p, out=logits) is logits
        assert_same_bits(logits, expected, f"{rows} rows")


def _losses(logits: Tensor) -> tuple[Tensor, ...]:
    rows, vocab = logits.shape
    value = torch.ones(rows, device=logits.device)
    labels = torch.full((rows,), vocab - 1, device=logits.device)
    return autodeco_ext.autodeco_loss(
        logits, value, 0.9 * value, labels, easy_token_drop=0.0, reduction="none"
    )


EXP2 = "ex2.approx.ftz.f32 %0, %1;"
# Over the bits of -0 and of every number from there to -1.
LARGEST_WEIGHT = f"""
extern "C" __global__ void largest_weight(unsigned* largest) {{
  unsigned mine = 0;
  const unsigned first = 0x80000000u + blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned bits = first; bits <= 0xbf800000u; bits += gridDim.x * blockDim.x) {{
    float weight;
    asm("{EXP2}" : "=f"(weight) : "f"(__uint_as_float(bits)));
    mine = max(mine, __float_as_uint(weight));
  }}
  atomicMax(largest, mine);
}}
"""


def test_no_weight_exceeds_one(cuda: torch.device) -> None:
    """What sums of masses need to fit their 64 bits, of the instruction that makes a weight."""
    kernels = Path(__file__).parent.parent / "csrc" / "cuda"
    assert f'asm("{EXP2}"' in (kernels / "gpu.cuh").read_text()
    largest = torch.zeros(1, dtype=torch.int32, device=cuda)
    kernel = torch.cuda._compile_kernel(LARGEST_WEIGHT, "largest_weight")
    kernel(grid=(1024, 1, 1), block=(256, 1, 1), args=[largest])
    assert largest.view(torch.float32).item() == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_elements_than_32_bits_count(cuda: torch.device, dtype: torch.dtype) -> None:
    rows, vocab = 15_408, 151_936
    assert rows * vocab > 2**31
    logits_bytes = rows * vocab * dtype.itemsize
    output_bytes = 0 if dtype == torch.float32 else rows * vocab * 4  # in place where it can be
    needed = logits_bytes + output_bytes + 2**30
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(cuda)[0]
    if free < needed:
        pytest.skip(f"cuda: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free")
    far = make_rows("gaussian", 64, vocab, dtype, generator(7)).to(cuda)
    logits = torch.zeros(rows, vocab, dtype=dtype, device=cuda)
    logits[-64:] = far
    seed = torch.arange(rows, device=cuda)
    expected = autodeco_ext.sample(far, 0.9, 0.95, seed=seed[-64:], return_info=True)
    info = autodeco_ext.sample(logits, 0.9, 0.95, seed=seed, return_info=True)
    assert_same_bits([output[-64:] for output in info], expected, "sample")
    assert (info.kept[:-64] == info.kept[0]).all()  # the rows before are all equal
    expected = autodeco_ext.distribution_stats(far)
    stats = autodeco_ext.distribution_stats(logits)
    assert_same_bits(stats[-64:], expected, "distribution_stats")
    assert (stats[:-64] == stats[0]).all()
    expected = autodeco_ext.kept_indices(far, 0.9, top_k=3)
    kept = autodeco_ext.kept_indices(logits, 0.9, top_k=3)
    assert_same_bits(kept.ids[-192:], expected.ids, "kept_indices")
    heads = tiny_heads().to(cuda)
    hidden_states = torch.ones(rows, heads.hidden_size, device=cuda)
    expected = autodeco_ext.decode_step(hidden_states[-64:], far, heads, seed=seed[-64:])
    step = autodeco_ext.decode_step(hidden_states, logits, heads, seed=seed)
    assert_same_bits([output[-64:] for output in step[:3]], expected[:3], "decode_step")
    losses = _losses(logits)
    assert_same_bits([output[-64:] for output in losses], _losses(far), "autodeco_loss")
    expected = autodeco_ext.filter_logits(far, 0.9, 0.95)
    out = logits if dtype == torch.float32 else None
    filtered = autodeco_ext.filter_logits(logits, 0.9, 0.95, out=out)
    assert_same_bits(filtered[-64:], expected, "filter_logits")
    assert_same_bits(filtered[-65], filtered[0], "filter_logits of equal rows")

"""Properties of the sampler on rows and parameters that hypothesis chooses.

Every example is judged in float64 by the rules of semantics.md. Examples are derandomised: a run
finds the same as the run before. The slow test takes more of them.
"""

from __future__ import annotations

import adversarial
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_close, assert_kept
from torch import Tensor

import autodeco_ext

SETTINGS = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    # The fixture chooses the instruction set, which no example changes.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def row_parameters(draw: st.DrawFn, vocab: int) -> dict[str, float | int]:
    """Filters of one row, of which three in four are the common ones."""
    extreme = draw(st.integers(0, 3)) == 0
    temperature = draw(
        st.sampled_from(adversarial.TEMPERATURES) if extreme else st.floats(0.125, 2, width=32)
    )
    top_p = draw(st.sampled_from(adversarial.TOP_PS) | st.floats(0, 1, width=32))
    return {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": draw(st.just(0) | st.sampled_from(adversarial.TOP_KS) | st.integers(1, vocab)),
        "min_p": draw(st.just(0.0) | st.sampled_from(adversarial.MIN_PS)),
        "valid_vocab": draw(st.just(vocab) | st.integers(1, vocab)),
    }


@st.composite
def batches(
    draw: st.DrawFn, vocab_sizes: tuple[int, ...], rows: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows of families of their own, some of them in a strided view, and their parameters."""
    vocab = draw(st.sampled_from(vocab_sizes))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    families = [draw(st.sampled_from(sorted(adversarial.FAMILIES))) for _ in range(rows)]
    masked = draw(st.sampled_from((0.0, 0.0, 0.3, 0.9, 0.999)))
    logits = torch.stack(
        [adversarial.make_row(family, vocab, dtype, masked, generator) for family in families]
    )
    if draw(st.booleans()):  # rows at odd addresses, with NaN around them
        around = torch.full((rows, vocab + 7), torch.nan, dtype=dtype)
        around[:, 3 : 3 + vocab] = logits
        logits = around[:, 3 : 3 + vocab]
    chosen = [draw(row_parameters(vocab)) for _ in range(rows)]
    parameters = {
        name: torch.tensor(
            [row[name] for row in chosen],
            dtype=torch.int64 if isinstance(chosen[0][name], int) else torch.float32,
        )
        for name in chosen[0]
    }
    return logits, parameters


def check_info(
    logits: Tensor,
    kept: Tensor,
    info: autodeco_ext.SampleOutput,
    temperature: Tensor,
    valid_vocab: Tensor,
) -> None:
    """Tokens are kept, and what is said about them is what float64 says."""
    assert kept.gather(-1, info.tokens).all()
    assert torch.equal(info.kept, kept.sum(-1))
    exists = torch.arange(logits.shape[-1]) < valid_vocab[:, None]
    row = logits.double().where(exists, -torch.inf)
    below = row - row.amax(-1, keepdim=True)
    greedy = temperature == 0
    scaled = below / temperature.double().where(~greedy, 1.0)[:, None]
    log_kept = scaled.where(kept, -torch.inf).logsumexp(-1, keepdim=True)
    log_row = scaled.logsumexp(-1, keepdim=True)
    lowest = torch.finfo(torch.float32).min
    logprobs = (scaled.gather(-1, info.tokens) - log_kept).masked_fill(greedy[:, None], 0.0)
    assert_close(info.logprobs, logprobs.clamp(min=lowest), torch.float32, "logprobs")
    raw = below.gather(-1, info.tokens) - below.logsumexp(-1, keepdim=True)
    assert_close(info.raw_logprobs, raw.clamp(min=lowest), torch.float32, "raw_logprobs")
    log_kept_mass = (log_kept - log_row)[:, 0].masked_fill(greedy, 0.0)
    assert_close(info.log_kept_mass, log_kept_mass, torch.float32, "log_kept_mass")
    assert (info.log_kept_mass <= 0).all()


def check_batch(logits: Tensor, parameters: dict[str, Tensor]) -> None:
    filtered = autodeco_ext.filter_logits(logits, **parameters)
    kept = filtered > -torch.inf
    assert_kept(logits, kept, **parameters)
    seed = torch.arange(len(logits)) * 7919
    info = autodeco_ext.sample(logits, **parameters, seed=seed, num_samples=5, return_info=True)
    check_info(logits, kept, info, parameters["temperature"], parameters["valid_vocab"])
    # The same, alone, elsewhere and without what return_info adds.
    last = {name: value[-1:] for name, value in parameters.items()}
    alone = autodeco_ext.sample(logits[-1:].clone(), **last, seed=seed[-1:], num_samples=5)
    assert torch.equal(alone, info.tokens[-1:])


@pytest.mark.slow
@settings(max_examples=250, **SETTINGS)
@given(batch=batches(adversarial.VOCAB_SIZES, rows=4))
def test_any_filters_on_any_row(backend: str, batch: tuple[Tensor, dict[str, Tensor]]) -> None:
    check_batch(*batch)


@pytest.mark.slow
@settings(max_examples=25, **SETTINGS)
@given(batch=batches((adversarial.LARGE_VOCAB, 131072), rows=2))
def test_any_filters_on_a_row_of_a_language_model(
    backend: str, batch: tuple[Tensor, dict[str, Tensor]]
) -> None:
    check_batch(*batch)


@pytest.mark.slow
@settings(max_examples=1500, **SETTINGS)
@given(batch=batches((*adversarial.VOCAB_SIZES, adversarial.LARGE_VOCAB), rows=3))
def test_many_more_of_them(backend: str, batch: tuple[Tensor, dict[str, Tensor]]) -> None:
    check_batch(*batch)


@pytest.mark.parametrize("family", sorted(adversarial.FAMILIES))
def test_top_k_is_exact_below_top_p(backend: str, family: str) -> None:
    generator = torch.Generator().manual_seed(4)
    row = adversarial.make_row(family, 30_000, torch.float32, 0.0, generator)[None]
    for top_k in (301, 3500, 14_000):
        for top_p in (1 - 2**-24, 0.999999, 0.7):
            kept = autodeco_ext.filter_logits(row, 1.0, top_p, top_k) > -torch.inf
            assert_kept(row, kept, 1.0, top_p, top_k)


def test_a_top_p_near_one_brings_back_no_tie_that_top_k_dropped(backend: str) -> None:
    # The block sums of the first filter and the list of the second round differently.
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        row = -20 + 0.5 * torch.rand(1, 151_936, generator=generator)
        row[0, 0] = 0
        row[0, 512 : 512 + 2048] = -0.01 * (step + 1)
        row[0, 5000:90_000:17] = -3.0
        kept = autodeco_ext.filter_logits(row, 1.0, 1 - 2**-24, 3500) > -torch.inf
        assert kept.sum() <= 3500


@pytest.mark.parametrize("top_p", [0.5, 1 - 2**-24])
def test_the_largest_vocabulary_of_equal_tokens(backend: str, top_p: float) -> None:
    # Their masses fill 64 bits: a sum or a product one larger would wrap around.
    row = torch.zeros(1, 2**20)
    info = autodeco_ext.sample(row, top_p=top_p, seed=3, num_samples=200, return_info=True)
    assert_kept(row, info.kept, top_p=top_p)
    assert (info.tokens < info.kept).all()
    assert info.tokens.max() > 0.9 * info.kept
    assert info.log_kept_mass.item() == pytest.approx(torch.tensor(top_p).log().item(), abs=2e-6)


@pytest.mark.parametrize("below", [6e-8, 3e-7, 1e-6, 3e-6, 3e-5])
def test_the_largest_vocabulary_of_nearly_equal_tokens(backend: str, below: float) -> None:
    # Weights relative to the first block are above 1: rounded up, their sum would wrap around.
    row = torch.ones(1, 2**20)
    row[0, :512] -= below
    info = autodeco_ext.sample(row, seed=3, num_samples=50, return_info=True)
    assert info.tokens.max() > 0.9 * 2**20
    check_info(row, row > -torch.inf, info, torch.ones(1), torch.tensor([2**20]))
    assert_kept(row, autodeco_ext.sample(row, top_p=0.5, seed=3, return_info=True).kept, top_p=0.5)


@pytest.mark.parametrize(
    ("temperature", "largest", "most", "first_block"),
    [
        (1.39766, 9.98906, -6.0947304, -8.087282),
        (0.7192656, 16.117306, 7.907598, 7.586676),
        (1.402901, 9.320373, -7.283291, -8.385923),
    ],
)
def test_a_reference_far_below_the_maximum_shifts_no_cut(
    backend: str, temperature: float, largest: float, most: float, first_block: float
) -> None:
    # All blocks share the reference and its rounding, which here is of another sign than that of
    # the tokens' own weights.
    row = torch.full((1, 2**20), most)
    row[0, :512] = first_block
    row[0, -512] = largest
    info = autodeco_ext.sample(row, temperature, 0.9999, seed=1, return_info=True)
    assert_kept(row, info.kept, temperature, 0.9999)


def test_an_interval_that_ends_below_zero_holds_no_zero(backend: str) -> None:
    # The key below that of zero decodes to -0.0. Here a guess of the k-th logit ends there,
    row = torch.zeros(1, 20_000).masked_fill(torch.arange(20_000) % 10 > 6, -torch.inf)
    kept = autodeco_ext.filter_logits(row, 3.0, 0.16, 15_000) > -torch.inf
    assert_kept(row, kept, 3.0, 0.16, 15_000)
    # and here a bin of the list does, with fewer tokens than there are zeros above it.
    row = torch.zeros(1, 200)
    row[0, 0] = 1.0
    row[0, 100:110] = -1e-40
    row[0, 110:] = -(1 - 2**-24)
    kept = autodeco_ext.filter_logits(row, 1.0, 1.0, 105) > -torch.inf
    assert_kept(row, kept, 1.0, 1.0, 105)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF, 0xFFC00055])
@pytest.mark.parametrize("vocab", [40, 5000])
def test_nan_of_any_payload_makes_a_row_invalid(backend: str, bits: int, vocab: int) -> None:
    row = torch.zeros(1, vocab)
    row.view(torch.int32)[0, 37] = bits - 2**32 if bits >= 2**31 else bits
    assert autodeco_ext.sample(row, seed=1, return_info=True, check=False).valid.tolist() == [False]
    for operation in (autodeco_ext.filter_logits, autodeco_ext.distribution_stats):
        with pytest.raises(ValueError, match="must not contain NaN"):
            operation(row)

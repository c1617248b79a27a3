"""The reference's random numbers and draws: known answers, keys, rates and log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import chi_square_pvalue, generator, make_rows, tokens_pvalue

from autodeco_ext import reference


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers for philox4x32 with 10 rounds
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected: str) -> None:
    words = reference.philox4x32_10(
        tuple(torch.tensor(word) for word in counter), tuple(torch.tensor(word) for word in key)
    )
    assert " ".join(f"{word.item():08x}" for word in words) == expected


def test_uniform_numbers_use_every_bit_of_the_key_and_counter() -> None:
    base = reference.philox_uniform(3, 5)
    assert base.item() == reference.philox_uniform(torch.tensor([3]), 5, 0, 0).item()
    others = [
        reference.philox_uniform(*arguments).item()
        for arguments in [(3 + 2**40, 5), (3, 5 + 2**40), (3, 5, 1), (3, 5, 0, 1), (4, 5), (3, 6)]
    ]
    assert len({base.item(), *others}) == 7
    assert reference.philox_uniform(-1).item() == reference.philox_uniform(2**64 - 1).item()
    zero = (0xE169C58D << 32 | 0x6627E8D5) >> 11
    assert reference.philox_uniform(0).item() == zero * 2.0**-53


def test_uniform_numbers_are_uniform() -> None:
    for stream in range(4):
        u = reference.philox_uniform(torch.arange(20_000), 1, stream)
        assert (u >= 0).all() and (u < 1).all()
        cells = (u * 100).long().bincount(minlength=100)
        assert chi_square_pvalue(cells, torch.ones(100)) > 1e-4


def test_draw_inverts_the_cumulative_sum_in_index_order() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    uniform = torch.tensor([[0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-24]])
    assert reference.draw(probs, uniform).tolist() == [[1, 1, 3, 3, 4, 4]]


def test_draw_falls_back_to_the_last_token_with_mass() -> None:
    # u * total rounds up to total itself: no running sum is larger.
    probs = torch.tensor([[1.0, 2.0**-52, 0.0]], dtype=torch.float64)
    assert reference.draw(probs, torch.ones(1, 1)).tolist() == [[1]]


def test_a_scalar_seed_advances_the_offset_by_row() -> None:
    logits = torch.zeros(2, 3, 50)
    scalar = reference.sample(logits, seed=9, offset=4)
    rows = torch.arange(6).view(2, 3)
    per_row = reference.sample(logits, seed=torch.full((2, 3), 9), offset=4 + rows)
    assert torch.equal(scalar, per_row)
    assert torch.equal(scalar, reference.sample(logits, seed=torch.tensor(9), offset=4))


def test_per_row_seeds_and_offsets_are_used_as_given() -> None:
    logits = torch.zeros(64, 50)
    same = reference.sample(logits, seed=torch.full((64,), 9))
    assert len(same.unique()) == 1
    same = reference.sample(logits, seed=9, offset=torch.zeros(64, dtype=torch.long))
    assert len(same.unique()) == 1
    assert len(reference.sample(logits, seed=9).unique()) > 20


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = make_rows("gaussian", 40, 300, torch.float32, generator(1))
    seeds = torch.arange(40)
    together = reference.sample(logits, 1.2, 0.9, seed=seeds, return_info=True)
    alone = reference.sample(logits[7:8], 1.2, 0.9, seed=seeds[7:8], return_info=True)
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[7:8], b)


def test_the_first_of_several_samples_is_the_single_one() -> None:
    logits = make_rows("gaussian", 8, 100, torch.float32, generator(2))
    single = reference.sample(logits, seed=3)
    several = reference.sample(logits, seed=3, num_samples=5, return_info=True)
    assert several.tokens.shape == several.logprobs.shape == several.raw_logprobs.shape == (8, 5)
    assert several.kept.shape == several.log_kept_mass.shape == several.valid.shape == (8,)
    assert torch.equal(several.tokens[:, 0], single)
    assert (several.tokens[:, 1:] != single[:, None]).any()


@pytest.mark.parametrize("kind", ["peaked", "tied", "masked"])
def test_sampled_frequencies_follow_the_distribution(kind: str) -> None:
    logits = make_rows(kind, 1, 500, torch.bfloat16, generator(4))
    probs = reference.sampling_distribution(logits, 1.5, 0.97, 400, 1e-4)
    tokens = reference.sample(logits, 1.5, 0.97, 400, 1e-4, seed=11, num_samples=40_000)
    assert tokens_pvalue(tokens, probs) > 1e-3
    wrong = reference.sampling_distribution(logits, 1.4, 0.97, 400, 1e-4)
    assert tokens_pvalue(tokens, wrong) < 1e-6


def test_a_token_of_probability_1e_9_is_drawn_at_its_rate() -> None:
    # 150,000 tokens of 1e-9 each behind one that has the rest: only sums in float64 keep them.
    logits = torch.zeros(150_000)
    logits[0] = math.log((1 - 1e-9 * 149_999) / 1e-9)
    running = reference.sampling_distribution(logits).cumsum(0)
    inside = (running[75_000] + running[75_001]) / 2
    assert (
        reference.draw(reference.sampling_distribution(logits)[None], inside.view(1, 1)) == 75_001
    )


def test_log_probabilities_are_those_of_the_distributions() -> None:
    logits = make_rows("gaussian", 50, 200, torch.float32, generator(5))
    temperature, top_p = torch.linspace(0.0, 2.0, 50), torch.linspace(0.2, 1.1, 50)
    info = reference.sample(logits, temperature, top_p, seed=1, return_info=True)
    probs = reference.sampling_distribution(logits, temperature, top_p)
    at_token = probs.gather(-1, info.tokens[:, None])[:, 0]
    torch.testing.assert_close(info.logprobs, at_token.log(), rtol=1e-12, atol=1e-14)
    raw = logits.double().softmax(-1).gather(-1, info.tokens[:, None])[:, 0]
    torch.testing.assert_close(info.raw_logprobs, raw.log(), rtol=1e-12, atol=1e-14)
    unfiltered = reference.sampling_distribution(logits, temperature)
    mass = (unfiltered * (probs > 0)).sum(-1)
    torch.testing.assert_close(info.log_kept_mass, mass.log(), rtol=1e-10, atol=1e-14)
    assert torch.equal(info.kept, (probs > 0).sum(-1))
    assert [value[0].item() for value in (info.logprobs, info.kept, info.log_kept_mass)] == [
        0,
        1,
        0,
    ]
    assert info.valid.all()

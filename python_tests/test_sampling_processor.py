"""SamplingLogitsProcessor against the stock warpers, the float64 distribution and bad input."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import generated_pvalue
from tiny_models import VOCAB, tiny_base
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from autodeco_ext import SamplingLogitsProcessor, reference

ROWS = 10_000
NO_IDS = torch.zeros(1, 1, dtype=torch.long)
SETTINGS = {"temperature": 0.8, "top_p": 0.85, "top_k": 20, "min_p": 0.01}


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def pvalue(tokens: torch.Tensor, model, prompt: torch.Tensor, **settings) -> float:
    """Of the generated tokens, by chi-square; the prompt is the same in every row."""

    @torch.no_grad()
    def distribution(ids: torch.Tensor) -> torch.Tensor:
        return reference.sampling_distribution(model(ids[None]).logits[0, -1], **settings)

    return generated_pvalue(tokens, prompt[0], distribution)


@pytest.mark.parametrize("settings", [SETTINGS, {"top_p": 0.5}, {"temperature": 1.7}, {"top_k": 3}])
def test_filter_mode_returns_what_the_stock_warpers_return(settings):
    scores = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    stock = LogitsProcessorList(
        [
            TemperatureLogitsWarper(settings.get("temperature", 1.0)),
            TopKLogitsWarper(settings.get("top_k", 1000)),
            TopPLogitsWarper(settings.get("top_p", 1.0)),
            MinPLogitsWarper(settings.get("min_p", 0.0)),
        ]
    )
    expected = stock(NO_IDS, scores)
    torch.testing.assert_close(SamplingLogitsProcessor(**settings)(NO_IDS, scores), expected)


def test_per_row_parameters_give_each_row_what_it_gets_alone():
    scores = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    values = {
        "temperature": torch.tensor([0.5, 1.0, 2.0]),
        "top_p": torch.tensor([0.3, 0.9, 1.0]),
        "top_k": torch.tensor([0, 5, 50]),
        "min_p": torch.tensor([0.0, 0.1, 0.02]),
    }
    together = SamplingLogitsProcessor(**values)(NO_IDS, scores)
    for row in range(3):
        alone = SamplingLogitsProcessor(**{name: v[row].item() for name, v in values.items()})
        assert torch.equal(together[row], alone(NO_IDS, scores[row : row + 1])[0])


def test_a_tensor_with_one_entry_per_prompt_covers_num_return_sequences():
    scores = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    processor = SamplingLogitsProcessor(torch.tensor([0.5, 2.0]))
    tripled = processor(NO_IDS, scores.repeat_interleave(3, dim=0))
    assert torch.equal(tripled, processor(NO_IDS, scores).repeat_interleave(3, dim=0))


@pytest.mark.parametrize("mode", ["filter", "sample"])
def test_tokens_inside_generate_follow_the_distribution(base, mode):
    prompt = torch.tensor([[1, 7, 20, 33]]).expand(ROWS, -1)
    processor = SamplingLogitsProcessor(**SETTINGS, mode=mode)
    torch.manual_seed(0)
    tokens = base.generate(
        prompt, logits_processor=[processor], max_new_tokens=2, **processor.generate_kwargs()
    )
    assert pvalue(tokens, base, prompt, **SETTINGS) > 1e-3


@pytest.mark.filterwarnings("ignore:autodeco_ext.SamplingLogitsProcessor. mode='sample'")
def test_sample_mode_is_immune_to_what_generate_adds(base):
    prompt = torch.tensor([[1, 7, 20, 33]]).expand(ROWS, -1)
    processor = SamplingLogitsProcessor(temperature=1.5, mode="sample", seed=0)
    tokens = base.generate(
        prompt, logits_processor=[processor], max_new_tokens=2, do_sample=True, top_p=0.3, top_k=2
    )
    assert pvalue(tokens, base, prompt, temperature=1.5) > 1e-3


@pytest.mark.parametrize("arguments", [{}, {"top_k": 0}])  # with a warper behind it, and without
def test_sample_mode_warns_once_where_generate_draws_too(base, arguments):
    processor = SamplingLogitsProcessor(mode="sample")
    prompt = torch.tensor([[1, 7]])
    options = {"logits_processor": [processor], "max_new_tokens": 2}
    with pytest.warns(UserWarning, match="mode='sample' has drawn the token") as caught:
        base.generate(prompt, **options, do_sample=True, **arguments)
        base.generate(prompt, **options, do_sample=True, **arguments)
    assert len(caught) == 1


def test_sample_mode_is_silent_where_generate_does_as_it_should(base):
    prompt = torch.tensor([[1, 7]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arguments in ({}, {"num_return_sequences": 2, "do_sample": True}):
            processor = SamplingLogitsProcessor(mode="sample")
            options = processor.generate_kwargs() | arguments
            base.generate(prompt, logits_processor=[processor], max_new_tokens=2, **options)
        processor(NO_IDS, torch.zeros(1, 5))  # nor in a loop of one's own


def test_generate_kwargs_leave_the_draw_to_whom_the_mode_says():
    assert SamplingLogitsProcessor(mode="sample").generate_kwargs() == {"do_sample": False}
    assert SamplingLogitsProcessor(mode="filter").generate_kwargs()["do_sample"] is True


def test_a_wrong_sampler_fails_the_same_check(base):
    prompt = torch.tensor([[1, 7, 20, 33]]).expand(ROWS, -1)
    wrong = SamplingLogitsProcessor(**{**SETTINGS, "temperature": 0.9}, mode="sample", seed=0)
    tokens = base.generate(prompt, logits_processor=[wrong], max_new_tokens=2)
    assert pvalue(tokens, base, prompt, **SETTINGS) <= 1e-3


def test_per_row_parameters_inside_generate(base):
    prompt = torch.tensor([[1, 7, 20, 33]]).expand(2, -1)
    temperature, top_p = torch.tensor([0.4, 1.6]), torch.tensor([0.95, 0.6])
    processor = SamplingLogitsProcessor(temperature, top_p, mode="sample", seed=3)
    tokens = base.generate(
        prompt,
        logits_processor=[processor],
        max_new_tokens=2,
        num_return_sequences=ROWS,
        do_sample=True,
    )
    for row in range(2):
        settings = {"temperature": temperature[row].item(), "top_p": top_p[row].item()}
        assert pvalue(tokens[row * ROWS : (row + 1) * ROWS], base, prompt, **settings) > 1e-3


def test_filter_mode_warns_once_about_warpers_behind_it(base):
    prompt = torch.tensor([[1, 7]])
    processor = SamplingLogitsProcessor()
    with pytest.warns(UserWarning, match="TopKLogitsWarper after this processor"):
        base.generate(prompt, logits_processor=[processor], do_sample=True, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base.generate(prompt, logits_processor=[processor], do_sample=True, max_new_tokens=2)
        other = SamplingLogitsProcessor()
        base.generate(prompt, logits_processor=[other], max_new_tokens=2, **other.generate_kwargs())


def test_filter_mode_warns_once_where_generate_does_not_draw(base):
    prompt = torch.tensor([[1, 7]])
    processor = SamplingLogitsProcessor(1.3)
    with pytest.warns(UserWarning, match="mode='filter' with do_sample=False is greedy") as caught:
        base.generate(prompt, logits_processor=[processor], do_sample=False, max_new_tokens=3)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beams = SamplingLogitsProcessor(1.3)
        base.generate(
            prompt, logits_processor=[beams], do_sample=False, num_beams=2, max_new_tokens=2
        )


@pytest.mark.parametrize("do_sample", [False, True])
def test_sample_mode_is_refused_in_beam_search(base, do_sample):
    options = {"num_beams": 2, "do_sample": do_sample, "max_new_tokens": 2}
    processor = SamplingLogitsProcessor(mode="sample")
    with pytest.raises(ValueError, match=r"mode must be 'filter' in beam search, .* num_beams=2"):
        base.generate(torch.tensor([[1, 7]]), logits_processor=[processor], **options)


def test_a_seed_fixes_the_tokens_and_rows_have_their_own(base):
    prompt = torch.tensor([[1, 7, 20, 33]]).expand(8, -1)

    def run(seed):
        processor = SamplingLogitsProcessor(2.0, mode="sample", seed=seed)
        return base.generate(prompt, logits_processor=[processor], max_new_tokens=6)

    tokens = run(5)
    assert torch.equal(tokens, run(5))
    assert torch.equal(tokens, run(torch.arange(5, 13)))
    assert len(tokens.unique(dim=0)) == 8
    assert not torch.equal(tokens, run(6))


def test_manual_seed_reproduces_sample_mode_without_a_seed(base):
    prompt = torch.tensor([[1, 7, 20, 33]]).expand(8, -1)
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        processor = SamplingLogitsProcessor(mode="sample")
        runs.append(base.generate(prompt, logits_processor=[processor], max_new_tokens=6))
    assert torch.equal(*runs)


def test_temperature_zero_is_the_argmax():
    scores = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0))
    filtered = SamplingLogitsProcessor(temperature=0)(NO_IDS, scores)
    assert torch.equal(filtered > -torch.inf, scores == scores.amax(-1, keepdim=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0, got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be finite and >= 0, got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number or a tensor .*'hot'"),
        ({"temperature": None}, TypeError, "temperature must be a number or a tensor, got None"),
        ({"temperature": torch.ones(2, 2)}, ValueError, r"temperature must have shape \[rows\]"),
        ({"temperature": torch.tensor([1.0, -1.0])}, ValueError, "temperature .*got -1.0 in row 1"),
        ({"top_p": 1.5}, ValueError, r"top_p must be in \[0, 1\], got 1.5"),
        ({"top_p": -0.1}, ValueError, r"top_p must be in \[0, 1\], got -0.1"),
        ({"top_p": torch.tensor([0.5, float("nan")])}, ValueError, "top_p .*got nan in row 1"),
        ({"top_k": -1}, ValueError, "top_k must be >= 0, got -1"),
        ({"top_k": 1.5}, TypeError, "top_k must be a whole number"),
        ({"top_k": torch.tensor([1.5])}, TypeError, "top_k must be a whole number .*float32"),
        ({"min_p": 2.0}, ValueError, r"min_p must be in \[0, 1\], got 2.0"),
        ({"mode": "draw"}, ValueError, "mode must be 'filter' or 'sample', got 'draw'"),
        ({"seed": 1}, ValueError, "seed requires mode='sample'"),
        ({"seed": 1.0, "mode": "sample"}, TypeError, "seed must be an int or an int64 tensor"),
        ({"seed": 2**63, "mode": "sample"}, ValueError, "seed must fit in int64"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"autodeco_ext.SamplingLogitsProcessor: {message}"):
        SamplingLogitsProcessor(**arguments)


def test_lengths_that_do_not_fit_the_batch_are_named():
    scores = torch.zeros(4, 10)
    with pytest.raises(ValueError, match=r"temperature must have one entry per row \(4\) .*got 3"):
        SamplingLogitsProcessor(torch.ones(3))(NO_IDS, scores)
    processor = SamplingLogitsProcessor(mode="sample", seed=torch.arange(3))
    with pytest.raises(ValueError, match=r"seed must have one entry per sequence \(4\), got 3"):
        processor(NO_IDS, scores)
    with pytest.raises(ValueError, match="row 1"):
        SamplingLogitsProcessor(mode="sample")(NO_IDS, torch.tensor([[0.0], [float("nan")]]))

"""Heads, losses, processors and `generate` on CUDA: what the CPU gives, and its sentences."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import tokens_pvalue
from tiny_models import (
    ARCHITECTURES,
    PROMPT,
    draw,
    tiny_autodeco,
    tiny_base,
    tiny_heads,
)
from torch import nn

from autodeco_ext import (
    AutoDecoConfig,
    AutoDecoHeads,
    AutoDecoLogitsProcessor,
    AutoDecoModelForCausalLM,
    SamplingLogitsProcessor,
    reference,
)

ROWS = 10_000
NO_IDS = torch.zeros(1, 1, dtype=torch.long)


@pytest.fixture(scope="module")
def model() -> AutoDecoModelForCausalLM:
    return tiny_autodeco()


def on(device: torch.device, module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(device)


# Heads.


def test_tf32_is_not_used_and_is_put_back(cuda):
    heads = on(cuda, AutoDecoHeads(AutoDecoConfig(hidden_size=512)))
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 512, generator=random).to(cuda)
    logits = torch.randn(64, 101, generator=random).to(cuda)
    expected = heads(hidden, logits)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        got = heads(hidden, logits)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.temperature, expected.temperature)
    assert torch.equal(got.top_p, expected.top_p)


def test_input_that_is_not_on_the_heads_device_is_refused(cuda):
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=4))
    with pytest.raises(ValueError, match=f"must be on cpu like the heads, got {cuda}$"):
        heads(torch.zeros(2, 4, device=cuda), torch.zeros(2, 9, device=cuda))


# generate. The model is float32, so its logits differ from the CPU's by rounding only.


@pytest.mark.parametrize(("name", "tied"), ARCHITECTURES)
def test_tokens_and_trace_are_the_cpus(cuda, name, tied):
    model = tiny_autodeco(name, tied=tied)
    expected = draw(model, return_trace=True, max_new_tokens=12)
    got = draw(on(cuda, model), PROMPT.to(cuda), return_trace=True, max_new_tokens=12)
    assert got.sequences.device == cuda
    assert torch.equal(got.sequences.cpu(), expected.sequences)
    assert torch.equal(got.trace.tokens, expected.trace.tokens)
    assert torch.equal(got.trace.kept, expected.trace.kept)
    for field in ("temperature", "top_p", "logprobs", "entropy"):
        torch.testing.assert_close(
            getattr(got.trace, field), getattr(expected.trace, field), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": torch.tensor([0.0, 0.7, 1.5])},
        {"top_p": torch.tensor([0.3, 0.9, 1.0]), "top_k": 20},
        {"min_p": 0.02, "valid_vocab": 40},
        {"seed": torch.tensor([5, -7, 2**62]), "num_beams": 1},
        {"use_cache": False},
        # generate compiles the forward pass for this cache on CUDA.
        pytest.param({"cache_implementation": "static"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(settings),
)
def test_options_give_the_cpus_tokens(cuda, model, settings):
    expected = draw(model, **settings)
    assert torch.equal(draw(on(cuda, model), PROMPT.to(cuda), **settings).cpu(), expected)


def test_left_padding_and_end_tokens_give_the_cpus_tokens(cuda, model):
    prompt = torch.tensor([[0, 0, 1, 7], [1, 5, 20, 33]])
    mask = (prompt != 0).long()
    end = draw(model, prompt, attention_mask=mask)[1, 6].item()
    options = {"eos_token_id": end, "pad_token_id": 0}
    expected = draw(model, prompt, attention_mask=mask, **options)
    got = draw(on(cuda, model), prompt.to(cuda), attention_mask=mask.to(cuda), **options)
    assert torch.equal(got.cpu(), expected)


def test_manual_seed_reproduces_and_gives_the_cpus_tokens(cuda, model):
    results = []
    for device in (torch.device("cpu"), cuda, cuda):
        torch.manual_seed(4)
        tokens = draw(on(device, model), PROMPT.to(device), seed=None)
        results.append(tokens.cpu())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_scores_are_the_distribution_that_was_drawn_from(cuda, model):
    moved = on(cuda, model)
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    result = draw(moved, PROMPT.to(cuda), **options)
    trace = draw(moved, PROMPT.to(cuda), return_trace=True).trace
    for step, (scores, logits) in enumerate(zip(result.scores, result.logits, strict=True)):
        settings = (trace.temperature[:, step], trace.top_p[:, step])
        expected = reference.sampling_distribution(logits.cpu(), *settings)
        got = scores.cpu().double().softmax(-1)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_base_draws_from_its_own_logits(cuda, dtype):
    model = on(cuda, tiny_autodeco(dtype=dtype))
    prompt = PROMPT[:1].to(cuda)
    tokens = draw(model, prompt.expand(ROWS, -1), max_new_tokens=1, seed=0)[:, -1].cpu()
    with torch.no_grad():
        # The batch that was drawn from: narrow matrix products depend on its size by rounding.
        output = model(prompt.expand(ROWS, -1), logits_to_keep=1)
    probs = reference.sampling_distribution(
        output.logits[0, -1].cpu(), output.temperature[0, -1].cpu(), output.top_p[0, -1].cpu()
    )
    assert tokens_pvalue(tokens, probs) > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_invalid_row_stops_with_the_cpus_sentence(cuda, model, value):
    def spoil(input_ids, scores):
        scores = scores.clone()
        if input_ids.shape[1] == 6:
            scores[1] = value
        return scores

    with pytest.raises(ValueError, match="invalid row for sequence 1 at step 2"):
        draw(on(cuda, model), PROMPT.to(cuda), logits_processor=[spoil])


def test_a_model_that_outputs_nan_is_an_error_about_its_logits(cuda, model):
    spoilt = on(cuda, model)
    with torch.no_grad():
        spoilt.get_parameter("lm_head.weight")[3] = float("nan")
    with pytest.raises(ValueError, match=r"^autodeco_ext.generate: logits must be free of NaN"):
        draw(spoilt, PROMPT.to(cuda))


# The loss.


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_of_labels_and_its_gradients_are_the_references(device, model, training):
    predicted = model(PROMPT)
    # Never the most likely token: which of those are dropped is drawn by the device's generator.
    third = predicted.logits.topk(3).indices[:, :-1, 2]
    labels = torch.cat([PROMPT[:, :1], third], dim=1)
    expected = reference.autodeco_loss(
        predicted.logits.detach(),
        predicted.temperature,
        predicted.top_p,
        torch.cat([third, torch.full((len(PROMPT), 1), -100)], dim=1),
    ).loss
    gradients = torch.autograd.grad(expected, list(model.heads.parameters()))
    moved = on(device, model)
    moved.heads.train(training)
    output = moved(PROMPT.to(device), labels=labels.to(device))
    assert output.loss.device == device and (output.logits is None) == training
    output.loss.backward()
    torch.testing.assert_close(output.loss.cpu(), expected, rtol=1e-4, atol=1e-6)
    for parameter, gradient in zip(moved.heads.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient, rtol=1e-3, atol=1e-5)


# Processors.


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8, "top_p": 0.85, "top_k": 20, "min_p": 0.01},
        {"temperature": torch.tensor([0.0, 0.7, 1.5]), "top_p": torch.tensor([1.0, 0.9, 0.3])},
    ],
)
def test_the_sampling_processor_gives_the_cpus_scores(cuda, settings):
    scores = 3 * torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    for options in ({}, {"mode": "sample", "seed": 3}):
        processor = SamplingLogitsProcessor(**settings, **options)
        expected = processor(NO_IDS, scores)
        got = processor(NO_IDS.to(cuda), scores.to(cuda))
        assert got.device == cuda
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["filter", "sample"])
def test_the_sampling_processor_inside_generate_follows_the_distribution(cuda, mode):
    base = on(cuda, tiny_base())
    prompt = PROMPT[:1].to(cuda).expand(ROWS, -1)
    settings = {"temperature": 0.8, "top_p": 0.85, "top_k": 20, "min_p": 0.01}
    processor = SamplingLogitsProcessor(**settings, mode=mode)
    torch.manual_seed(0)
    tokens = base.generate(
        prompt, logits_processor=[processor], max_new_tokens=1, **processor.generate_kwargs()
    )
    with torch.no_grad():
        logits = base(prompt[:1]).logits[0, -1].cpu()
    probs = reference.sampling_distribution(logits, **settings)
    assert tokens_pvalue(tokens[:, -1].cpu(), probs) > 1e-3


@pytest.mark.parametrize("mode", ["filter", "sample"])
def test_the_heads_processor_sees_every_steps_prediction(cuda, mode):
    base = tiny_base()
    heads = tiny_heads()
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 1}
    results = []
    for device in (torch.device("cpu"), cuda):
        moved = on(device, base)
        seed = {"seed": 3} if mode == "sample" else {}
        with AutoDecoLogitsProcessor(on(device, heads), moved, mode=mode, **seed) as processor:
            result = moved.generate(
                PROMPT.to(device),
                logits_processor=[processor],
                **options,
                **processor.generate_kwargs(),
            )
        results.append(result.scores[0].cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)

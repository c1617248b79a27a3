"""AutoDecoModelForCausalLM.generate: outputs, streams, pipelines, and bad input."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    MAX_POSITIONS,
    PROMPT,
    VOCAB,
    draw,
    tiny_autodeco,
    tiny_base,
    tiny_tokenizer,
)
from transformers import StoppingCriteria, TextGenerationPipeline

from autodeco_ext import AutoDecoModelForCausalLM, reference


@pytest.fixture(scope="module")
def model():
    return tiny_autodeco()


# Outputs.


def test_scores_are_the_distribution_that_was_drawn_from(model):
    result = draw(model, return_dict_in_generate=True, output_scores=True, output_logits=True)
    trace = draw(model, return_trace=True).trace
    assert len(result.scores) == 8
    for step, (scores, logits) in enumerate(zip(result.scores, result.logits, strict=True)):
        settings = (trace.temperature[:, step], trace.top_p[:, step])
        expected = reference.sampling_distribution(logits, *settings)
        torch.testing.assert_close(scores.double().softmax(-1), expected, atol=1e-5, rtol=1e-5)
    transition = model.compute_transition_scores(
        result.sequences, result.scores, normalize_logits=True
    )
    torch.testing.assert_close(transition, trace.logprobs, atol=1e-5, rtol=1e-5)


def test_stopping_criteria_see_the_scores(model):
    seen = []

    class Watch(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(scores[-1].isfinite().sum(-1))
            return torch.tensor([input_ids.shape[1] >= 7] * len(input_ids))

    options = {"return_dict_in_generate": True, "output_scores": True}
    result = draw(model, stopping_criteria=[Watch()], **options)
    trace = draw(model, return_trace=True).trace
    assert result.sequences.shape[1] == 7
    assert torch.equal(torch.stack(seen, dim=1), trace.kept[:, :3])


def test_end_tokens_stop_and_pad(model):
    free = draw(model)
    end = free[1, 6].item()
    tokens = draw(model, eos_token_id=end, pad_token_id=0)
    for row in range(3):
        generated = free[row, 4:].tolist()
        length = generated.index(end) + 1 if end in generated else 8
        expected = generated[:length] + [0] * (tokens.shape[1] - 4 - length)
        assert tokens[row, 4:].tolist() == expected


def test_a_streamer_gets_prompt_and_tokens(model):
    class Collect:
        parts, ended = (), False

        def put(self, value):
            self.parts += tuple(value.flatten().tolist())

        def end(self):
            self.ended = True

    streamer = Collect()
    tokens = draw(model, PROMPT[:1], streamer=streamer)
    assert streamer.ended and list(streamer.parts) == tokens[0].tolist()


def test_inputs_embeds_draw_the_same_tokens(model):
    embeds = model.get_input_embeddings()(PROMPT)
    tokens = model.generate(inputs_embeds=embeds, do_sample=True, max_new_tokens=8, seed=3)
    assert torch.equal(tokens, draw(model)[:, 4:])


def test_a_text_generation_pipeline_uses_the_heads(model):
    # The pipeline passes temperature=0.7 explicitly where the model's generation_config is silent.
    generator = TextGenerationPipeline(model=model, tokenizer=tiny_tokenizer())
    result = generator("t1 t7 t20 t33", max_new_tokens=8, seed=3, return_tensors=True)
    assert result[0]["generated_token_ids"] == draw(model, PROMPT[:1])[0].tolist()


# Bad input.


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"seed": 1.5}, TypeError, "seed must be an int or an int64 tensor, got 1.5"),
        ({"seed": torch.ones(3)}, TypeError, "seed must be an int or an int64 tensor, .*float32"),
        ({"seed": torch.arange(2)}, ValueError, r"seed must have one entry per sequence \(3\)"),
        ({"temperature": -0.5}, ValueError, "temperature must be finite and >= 0, got -0.5"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature must have one entry per row"),
        ({"top_p": 1.2}, ValueError, r"top_p must be in \[0, 1\], got 1.2"),
        ({"top_k": -2}, ValueError, "top_k must be >= 0, got -2"),
        ({"valid_vocab": 0}, ValueError, rf"valid_vocab must be in \[1, {VOCAB}\], got 0"),
        ({"valid_vocab": 1.0}, TypeError, "valid_vocab must be an int, got 1.0"),
        ({"return_trace": "no"}, TypeError, "return_trace must be a bool, got 'no'"),
        ({"do_sample": False, "return_trace": True}, ValueError, "return_trace requires do_sample"),
        ({"do_sample": False, "valid_vocab": 5}, ValueError, "valid_vocab requires do_sample"),
        (
            {"do_sample": False, "temperature": torch.ones(3)},
            ValueError,
            "a tensor as temperature requires do_sample=True",
        ),
    ],
)
def test_bad_arguments_are_named(model, kwargs, error, message):
    with pytest.raises(error, match=f"autodeco_ext.generate: {message}"):
        draw(model, **kwargs)


def test_a_prompt_longer_than_the_model_is_refused(model):
    long = torch.full((2, MAX_POSITIONS + 1), 5)
    message = f"prompt must have at most {MAX_POSITIONS} tokens .* got {MAX_POSITIONS + 1}"
    for kwargs in ({}, {"do_sample": False}):
        with pytest.raises(ValueError, match=message):
            draw(model, long, **kwargs)
    mask = torch.ones_like(long)
    mask[:, :2] = 0  # left padding takes no positions
    assert draw(model, long, attention_mask=mask, max_new_tokens=1).shape[1] == MAX_POSITIONS + 2


EMPTY = torch.zeros(2, 0, dtype=torch.long)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (
            {"inputs": PROMPT[:0]},
            ValueError,
            r"inputs must have shape \[rows, tokens\] .* \[0, 4\]",
        ),
        ({"inputs": EMPTY}, ValueError, r"at least one row and one token, got \[2, 0\]"),
        ({"input_ids": EMPTY}, ValueError, r"input_ids must have shape .* got \[2, 0\]"),
        ({"inputs": PROMPT[0]}, ValueError, r"inputs must have shape .* got \[4\]"),
        ({"inputs": [[1, 7]]}, TypeError, r"inputs must be a tensor \[rows, tokens\], got list"),
        (
            {"inputs_embeds": torch.zeros(2, 0, 32)},
            ValueError,
            r"inputs_embeds must have shape \[rows, tokens, hidden_size\] .* got \[2, 0, 32\]",
        ),
        ({"inputs_embeds": torch.zeros(0, 4, 32)}, ValueError, r"got \[0, 4, 32\]"),
        ({"inputs_embeds": torch.zeros(4, 32)}, ValueError, r"inputs_embeds must .* \[4, 32\]"),
    ],
)
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_prompt_without_rows_or_tokens_is_refused(model, prompt, error, message, do_sample):
    with pytest.raises(error, match=f"^autodeco_ext.generate: .*{message}$"):
        model.generate(**prompt, do_sample=do_sample, max_new_tokens=2)


def test_a_prompt_may_be_left_out_or_be_embeddings_alone(model):
    assert torch.equal(
        model.generate(do_sample=True, max_new_tokens=8, seed=3)[0, :1], PROMPT[0, :1]
    )
    embeds = model.get_input_embeddings()(PROMPT)
    tokens = draw(model, torch.zeros(3, 0, dtype=torch.long), inputs_embeds=embeds)
    assert torch.equal(tokens, draw(model)[:, 4:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_invalid_row_stops_before_it_reaches_the_model(model, value):
    def spoil(input_ids, scores):
        scores = scores.clone()
        if input_ids.shape[1] == 6:
            scores[1] = value
        return scores

    with pytest.raises(ValueError, match="invalid row for sequence 1 at step 2"):
        draw(model, logits_processor=[spoil])


def spoilt(head: str, **options: object):
    """A model one of whose heads predicts NaN."""
    model = AutoDecoModelForCausalLM.from_base(tiny_base(), **options)
    with torch.no_grad():
        getattr(model.heads, head).mlp[2].bias.fill_(float("nan"))
    return model


@pytest.mark.parametrize(
    ("head", "options", "named"),
    [
        # Alone, because the statistics that the top-p head reads refuse such a temperature earlier.
        (
            "temp_head",
            {"enable_top_p_head": False},
            r"temperature must be finite and >= 0, got nan",
        ),
        ("top_p_head", {}, r"top_p must be in \[0, 1\], got nan"),
    ],
)
@pytest.mark.parametrize("trace", [False, True])
def test_an_invalid_prediction_is_named_and_not_the_logits(head, options, named, trace):
    message = f"^autodeco_ext.generate: the predicted {named} for sequence 0 at step 0$"
    with pytest.raises(ValueError, match=message):
        draw(spoilt(head, **options), return_trace=trace)


def test_an_invalid_prediction_that_the_caller_replaces_does_not_matter(model):
    given = {"temperature": 0.9, "top_p": 0.8}
    assert torch.equal(draw(spoilt("top_p_head"), **given), draw(model, **given))


def test_a_temperature_beyond_float32_is_named(model):
    huge = torch.tensor([1.0, 1e300, 1.0], dtype=torch.float64)
    message = "the given temperature must be finite and >= 0, got inf for sequence 1 at step 0"
    with pytest.raises(ValueError, match=message):
        draw(model, temperature=huge)


def test_an_invalid_row_of_a_finished_sequence_does_not_matter(model):
    free = draw(model)
    end = free[1, 4].item()
    assert end not in free[0, 4:] and end not in free[2, 4:]

    def forbid_all_after_end(input_ids, scores):
        return scores.masked_fill((input_ids == end).any(-1, keepdim=True), -torch.inf)

    options = {"logits_processor": [forbid_all_after_end], "eos_token_id": end, "pad_token_id": 0}
    result = draw(model, return_trace=True, output_scores=True, **options)
    assert torch.equal(result.sequences[[0, 2]], free[[0, 2]])
    assert result.trace.mask.sum(-1).tolist() == [8, 1, 8]


@pytest.mark.parametrize(
    ("place", "enhanced"),
    [
        ("lm_head.weight", True),
        ("lm_head.weight", False),
        ("model.norm.weight", False),  # the predictions are NaN too
    ],
)
def test_a_model_that_outputs_nan_is_an_error_about_its_logits(place, enhanced):
    model = AutoDecoModelForCausalLM.from_base(tiny_base(), use_enhanced_features=enhanced)
    with torch.no_grad():
        model.get_parameter(place)[3] = float("nan")
    with pytest.raises(
        ValueError, match=r"^autodeco_ext\.[\w.]+: logits must (be free of|not contain) NaN"
    ):
        draw(model)

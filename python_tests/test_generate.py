"""AutoDecoModelForCausalLM.generate: what it draws from, and what of stock generate it keeps."""

from __future__ import annotations

import inspect
import re
import warnings

import pytest
import torch
from oracle import generated_pvalue
from tiny_models import (
    ARCHITECTURES,
    PROMPT,
    VOCAB,
    draw,
    in_threads,
    tiny_autodeco,
    tiny_base,
)
from transformers import (
    CompileConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

import autodeco_ext
from autodeco_ext import AutoDecoModelForCausalLM, reference
from autodeco_ext.generation.generate import _LOGIT_CHANGES, _OTHER_WARPERS, _OURS

ROWS = 10_000


@pytest.fixture(scope="module")
def model():
    return tiny_autodeco()


def predicted(model, ids: torch.Tensor, **override) -> torch.Tensor:
    """float64 distribution of the token after ids, [vocab]."""
    with torch.no_grad():
        output = model(ids[None])
    settings = {"temperature": output.temperature[0, -1], "top_p": output.top_p[0, -1]}
    return reference.sampling_distribution(output.logits[0, -1], **{**settings, **override})


def pvalue(model, tokens: torch.Tensor, prompt: torch.Tensor, **override) -> float:
    """Of the generated tokens, by chi-square."""
    return generated_pvalue(tokens, prompt, lambda ids: predicted(model, ids, **override))


def replay(model, prompt, steps, seeds, processors=(), **override) -> torch.Tensor:
    """generate written out: no cache, one sequence at a time."""
    sequences = []
    for row, seed in enumerate(seeds):
        ids = prompt[row : row + 1]
        for step in range(steps):
            with torch.no_grad():
                output = model(ids)
            scores = LogitsProcessorList(processors)(ids, output.logits[:, -1].float().clone())
            settings = {
                "temperature": output.temperature[:, -1],
                "top_p": output.top_p[:, -1],
                **override,
            }
            token = autodeco_ext.sample(
                scores, **settings, seed=torch.tensor([seed]), offset=torch.tensor([step])
            )
            ids = torch.cat([ids, token[:, None]], dim=1)
        sequences.append(ids)
    return torch.cat(sequences)


@pytest.mark.parametrize(("name", "tied"), ARCHITECTURES)
def test_tokens_follow_the_heads_distribution(name, tied):
    model = tiny_autodeco(name, tied=tied)
    tokens = draw(model, PROMPT[:1].expand(ROWS, -1), max_new_tokens=2, seed=0)
    assert pvalue(model, tokens, PROMPT[0]) > 1e-3


@pytest.mark.parametrize(
    "wrong", [{"temperature": 1.0}, {"top_p": 1.0}, {"top_k": 8}, {"top_p": 0.5}]
)
def test_a_wrong_sampler_fails_the_same_check(model, wrong):
    tokens = draw(model, PROMPT[:1].expand(ROWS, -1), max_new_tokens=2, seed=0, **wrong)
    assert pvalue(model, tokens, PROMPT[0]) < 1e-6
    assert pvalue(model, tokens, PROMPT[0], **wrong) > 1e-3


def test_generate_is_the_loop_written_out(model):
    assert torch.equal(draw(model), replay(model, PROMPT, 8, [3, 4, 5]))


def test_a_bfloat16_base_draws_from_its_own_logits():
    model = tiny_autodeco(dtype=torch.bfloat16)
    tokens = draw(model, PROMPT[:1].expand(ROWS, -1), max_new_tokens=2, seed=0)
    assert pvalue(model, tokens, PROMPT[0]) > 1e-3


# What of the caller's arguments counts.


def test_explicit_temperature_and_top_p_replace_the_heads(model):
    override = {"temperature": torch.tensor([0.3, 1.0, 1.9]), "top_p": 0.8}
    expected = [
        replay(model, PROMPT[i : i + 1], 8, [3 + i], temperature=t.item(), top_p=0.8)
        for i, t in enumerate(override["temperature"])
    ]
    assert torch.equal(draw(model, **override), torch.cat(expected))


def test_top_k_and_min_p_are_added_to_the_heads(model):
    expected = replay(model, PROMPT, 8, [3, 4, 5], top_k=5, min_p=0.05)
    assert torch.equal(draw(model, top_k=5, min_p=0.05), expected)
    assert not torch.equal(draw(model), expected)


def test_a_generation_config_argument_overrides_with_a_warning(model):
    config = GenerationConfig(do_sample=True, max_new_tokens=8, temperature=0.4)
    with pytest.warns(UserWarning, match=r"temperature=0\.4 of the generation_config argument"):
        tokens = model.generate(PROMPT, generation_config=config, seed=3)
    assert torch.equal(tokens, draw(model, temperature=0.4))
    assert config.temperature == 0.4


def test_the_models_own_sampling_settings_do_not_count(model):
    expected = draw(model)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.1,
        top_k=2,
        top_p=0.2,
        min_p=0.5,
        typical_p=0.2,
        eta_cutoff=0.1,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(model.generate(PROMPT, max_new_tokens=8, seed=3), expected)
            config = model.generation_config
            assert torch.equal(draw(model, generation_config=config), expected)
    finally:
        model.generation_config = own


def test_the_models_own_penalties_count_and_are_named(model):
    own = model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=3.0)
    try:
        with pytest.warns(UserWarning, match=r"asks for repetition_penalty=3\.0, which changes"):
            tokens = draw(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(draw(model, repetition_penalty=3.0), tokens)
            without = draw(model, repetition_penalty=1.0)
    finally:
        model.generation_config = own
    assert torch.equal(without, draw(model))
    processors = [RepetitionPenaltyLogitsProcessor(3.0)]
    assert torch.equal(tokens, replay(model, PROMPT, 8, [3, 4, 5], processors))


def test_the_models_own_removal_of_invalid_values_counts_and_is_named():
    # Without the features that the top-p head computes from the logits, and that refuse NaN first.
    model = AutoDecoModelForCausalLM.from_base(tiny_base(), use_enhanced_features=False)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    model.generation_config = GenerationConfig(remove_invalid_values=True)
    with pytest.warns(UserWarning, match=r"asks for remove_invalid_values=True, which changes"):
        tokens = draw(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw(model, remove_invalid_values=True), tokens)
        with pytest.raises(ValueError, match=r"logits must be free of NaN"):
            draw(model, remove_invalid_values=False)


def test_every_setting_that_stock_generate_makes_a_processor_of_is_known():
    """A setting that a newer transformers adds would change the logits unnoticed."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    read = set(re.findall(r"generation_config\.([a-z]\w*)", source))
    known = {*_OURS, *_OTHER_WARPERS, *_LOGIT_CHANGES, "watermarking_config", "renormalize_logits"}
    assert known == read - {"do_sample", "max_length", "num_beams", "use_cache"}


def test_user_processors_run_before_the_draw(model):
    def forbid_even(input_ids, scores):
        return scores.masked_fill(torch.arange(VOCAB) % 2 == 0, -torch.inf)

    tokens = draw(model, logits_processor=[forbid_even])
    assert (tokens[:, 4:] % 2 == 1).all()
    assert torch.equal(tokens, replay(model, PROMPT, 8, [3, 4, 5], [forbid_even]))


def test_guidance_uses_the_predictions_of_the_guided_prompt(model):
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, tiny_base())
    tokens = draw(model, PROMPT[:1], guidance_scale=1.5)
    assert torch.equal(tokens, replay(model, PROMPT[:1], 8, [3], [guidance]))


def test_a_one_token_nucleus_goes_with_constraints(model):
    with torch.no_grad():
        order = model(PROMPT).logits[:, -1].argsort(descending=True)
    best, second = order[:, 0], order[:, 1]
    assert torch.equal(draw(model, max_new_tokens=1, top_p=0.0)[:, -1], best)
    banned = draw(model, PROMPT[:1], max_new_tokens=1, top_p=0.0, suppress_tokens=[best[0].item()])
    assert banned[0, -1] == second[0]
    at_least = {"min_new_tokens": 1, "eos_token_id": best[0].item()}
    assert draw(model, PROMPT[:1], top_p=0.0, **at_least)[0, 4] == second[0]
    allowed = {"prefix_allowed_tokens_fn": lambda batch, ids: [17]}
    assert (draw(model, top_p=0.0, **allowed)[:, 4:] == 17).all()
    assert (draw(model, bad_words_ids=[[best[0].item()]])[0, 4:] != best[0]).all()


def test_temperature_zero_is_greedy(model):
    assert torch.equal(draw(model, temperature=0), model.generate(PROMPT, max_new_tokens=8))


def test_valid_vocab_hides_the_padding_of_the_table(model):
    tokens = draw(model, valid_vocab=10, return_trace=True)
    assert tokens.sequences[:, 4:].max() < 10
    assert (tokens.trace.entropy <= torch.tensor(10.0).log() + 1e-5).all()


# Greedy and other modes.


def test_without_do_sample_generate_is_the_stock_one(model):
    base = tiny_base()
    for kwargs in ({}, {"do_sample": False}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
        prompt = PROMPT[:1] if "prompt_lookup_num_tokens" in kwargs else PROMPT
        expected = base.generate(prompt, max_new_tokens=8, **kwargs)
        assert torch.equal(model.generate(prompt, max_new_tokens=8, seed=1, **kwargs), expected)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"num_beams": 2}, "generation mode 'beam_sample'"),
        ({"prompt_lookup_num_tokens": 2}, "generation mode 'assisted_generation'"),
        ({"assistant_model": tiny_base(seed=1)}, "generation mode 'assisted_generation'"),
        ({"penalty_alpha": 0.5, "dola_layers": "low"}, "generation mode 'dola_generation'"),
        ({"custom_generate": lambda model, **kwargs: None}, "custom_generate"),
        ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"typical_p": 0.5}, "typical_p=0.5"),
        ({"generation_config": GenerationConfig(epsilon_cutoff=0.1)}, "epsilon_cutoff=0.1"),
    ],
)
def test_modes_that_would_draw_otherwise_are_refused(model, kwargs, named):
    with pytest.raises(ValueError, match=f"do_sample=True must be plain sampling .* got {named}"):
        draw(model, PROMPT[:1], **kwargs)


def test_what_is_passed_by_position_is_refused_too(model):
    nothing = (None,) * 4  # logits_processor, stopping_criteria, ..., then assistant_model
    with pytest.raises(ValueError, match="got generation mode 'assisted_generation'"):
        model.generate(PROMPT[:1], None, *nothing, tiny_base(seed=1), do_sample=True)


def test_continuous_batching_refuses_to_sample(model):
    config = GenerationConfig(do_sample=True)
    with pytest.raises(ValueError, match="generate_batch: do_sample must be False"):
        model.generate_batch([[1, 2]], generation_config=config)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
    ],
)
def test_caches_do_not_change_the_tokens(model, kwargs):
    assert torch.equal(draw(model, **kwargs), draw(model))


@pytest.mark.slow
def test_a_compiled_forward_gives_the_same_tokens():
    model = tiny_autodeco()  # of its own: it keeps the compiled call
    compile_config = CompileConfig(backend="eager", fullgraph=False, mode=None)
    compile_config._compile_all_devices = True
    tokens = draw(model, cache_implementation="static", compile_config=compile_config)
    assert hasattr(model, "_compiled_call")
    assert torch.equal(tokens, draw(model))


# Batches and seeds.


def test_left_padding_and_batchmates_do_not_change_a_sequence(model):
    padded = torch.tensor([[0, 0, 0, 1, 7, 20, 33], [9, 1, 5, 20, 11, 6, 2]])
    tokens = draw(model, padded, attention_mask=(padded != 0).long(), seed=torch.tensor([8, 9]))
    assert torch.equal(tokens[:1, 3:], draw(model, PROMPT[:1], seed=torch.tensor([8])))
    assert torch.equal(tokens[1:], draw(model, padded[1:], seed=9))


def test_num_return_sequences_are_neighbours_with_their_own_seeds(model):
    tokens = draw(model, PROMPT[:2], num_return_sequences=3)
    expected = draw(model, PROMPT[:2].repeat_interleave(3, dim=0))
    assert torch.equal(tokens, expected)
    assert len(tokens.unique(dim=0)) == 6
    cold_hot = torch.tensor([0.0, 1.5])
    tokens = draw(model, PROMPT[:2], num_return_sequences=3, temperature=cold_hot)
    assert [len(part.unique(dim=0)) for part in tokens.split(3)] == [1, 3]


def test_a_scalar_seed_counts_up_over_sequences(model):
    assert torch.equal(draw(model, seed=6), draw(model, seed=torch.tensor([6, 7, 8])))
    assert torch.equal(draw(model, seed=torch.tensor(6)), draw(model, seed=6))
    assert not torch.equal(draw(model, seed=6), draw(model, seed=16))
    largest = 2**63 - 1
    wrapped = torch.tensor([largest, -largest - 1, -largest])
    assert torch.equal(draw(model, seed=largest), draw(model, seed=wrapped))


def test_without_a_seed_manual_seed_reproduces(model):
    def run(seed):
        torch.manual_seed(seed)
        return [draw(model, seed=None), draw(model, seed=None)]

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_threads_share_a_model_without_mixing(model):
    prompts = [PROMPT[:1].roll(i, dims=1).expand(2 + i, -1) for i in range(4)]
    expected = [draw(model, prompt, seed=i) for i, prompt in enumerate(prompts)]
    results = in_threads(4, lambda i: [draw(model, prompts[i], seed=i) for _ in range(5)])
    for own, got in zip(expected, results, strict=True):
        assert all(torch.equal(tokens, own) for tokens in got)


def test_a_generate_inside_a_processor_does_not_disturb(model):
    other = tiny_autodeco("qwen3")

    def nested(input_ids, scores):
        draw(other, PROMPT[:2], max_new_tokens=2, seed=None)
        draw(model, PROMPT[:1], max_new_tokens=2)
        model.generate(PROMPT[:1], max_new_tokens=2)
        return scores

    assert torch.equal(draw(model, logits_processor=[nested]), draw(model))

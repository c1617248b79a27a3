"""AutoDecoLogitsProcessor: the heads' distribution for a model object that stays as it is."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from oracle import generated_pvalue
from tiny_models import HIDDEN, PROMPT, in_threads, tiny_autodeco, tiny_base, tiny_heads
from transformers import CompileConfig, DynamicCache, StaticCache

from autodeco_ext import (
    AutoDecoConfig,
    AutoDecoHeads,
    AutoDecoLogitsProcessor,
    AutoDecoModelForCausalLM,
    reference,
)

ROWS = 10_000


@pytest.fixture(scope="module")
def heads():
    return tiny_heads()


@pytest.fixture
def base():
    return tiny_base()


def predicted(base, heads, ids: torch.Tensor) -> torch.Tensor:
    """float64 distribution of the token after ids, [batch, vocab]."""
    with torch.no_grad():
        output = base(ids, output_hidden_states=True)
        temperature, top_p = heads(output.hidden_states[-1][:, -1], output.logits[:, -1])
    return reference.sampling_distribution(output.logits[:, -1], temperature, top_p)


def generate(base, processor, prompt=PROMPT, **kwargs):
    arguments = {"max_new_tokens": 8, "logits_processor": [processor]}
    return base.generate(prompt, **{**arguments, **kwargs})


def pvalue(tokens, base, heads, prompt) -> float:
    """Of the generated tokens, by chi-square."""
    return generated_pvalue(tokens, prompt, lambda ids: predicted(base, heads, ids[None])[0])


@pytest.mark.parametrize("mode", ["filter", "sample"])
def test_tokens_inside_generate_follow_the_heads_distribution(base, heads, mode):
    torch.manual_seed(0)
    prompt = PROMPT[:1].expand(ROWS, -1)
    with AutoDecoLogitsProcessor(heads, base, mode=mode) as processor:
        kwargs = processor.generate_kwargs()
        tokens = generate(base, processor, prompt, max_new_tokens=2, **kwargs)
    assert pvalue(tokens, base, heads, PROMPT[0]) > 1e-3
    other = tiny_heads()
    with torch.no_grad():
        other.temp_head.mlp[2].bias += 0.3
    assert pvalue(tokens, base, other, PROMPT[0]) <= 1e-3


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"logits_to_keep": 0},
        {"logits_to_keep": 0, "use_cache": False},
        {"cache_implementation": "static"},
    ],
)
def test_every_step_sees_its_own_prediction(base, heads, kwargs):
    options = {"return_dict_in_generate": True, "output_scores": True}
    with AutoDecoLogitsProcessor(heads, base) as processor:
        options |= processor.generate_kwargs()
        result = generate(base, processor, **options, **kwargs)
    for step, scores in enumerate(result.scores):
        expected = predicted(base, heads, result.sequences[:, : 4 + step])
        torch.testing.assert_close(scores.double().softmax(-1), expected, atol=1e-5, rtol=1e-4)


def test_left_padding_and_num_return_sequences(base, heads):
    padded = torch.tensor([[0, 0, 0, 1, 7, 20, 33], [9, 1, 5, 20, 11, 6, 2]])
    with AutoDecoLogitsProcessor(heads, base) as processor:
        result = generate(
            base,
            processor,
            padded,
            attention_mask=(padded != 0).long(),
            num_return_sequences=2,
            max_new_tokens=1,
            return_dict_in_generate=True,
            output_scores=True,
            **processor.generate_kwargs(),
        )
    expected = torch.cat(
        [predicted(base, heads, padded[:1, 3:]), predicted(base, heads, padded[1:])]
    )
    got = result.scores[0].double().softmax(-1)
    torch.testing.assert_close(got, expected.repeat_interleave(2, 0), atol=1e-5, rtol=1e-4)


def test_it_agrees_with_the_model_class(base, heads):
    model = AutoDecoModelForCausalLM.from_base(base)
    model.heads.load_state_dict(heads.state_dict())
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 1}
    expected = model.generate(PROMPT, do_sample=True, seed=0, **options)
    with AutoDecoLogitsProcessor(heads, base) as processor:
        result = generate(base, processor, **options, **processor.generate_kwargs())
    assert torch.equal(result.scores[0], expected.scores[0])


# Assisted decoding.

ASSISTED = [
    {"assistant_model": tiny_base(seed=5)},
    {"assistant_model": tiny_base()},  # the same weights: most candidates are accepted
    {"prompt_lookup_num_tokens": 3},
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:autodeco_ext.AutoDecoLogitsProcessor. called before")
@pytest.mark.parametrize("kwargs", ASSISTED)
def test_assisted_drawing_gives_the_tokens_of_plain_drawing(base, heads, kwargs):
    # A drawn token depends on seed and position alone, so the candidates must not matter.
    prompts = [PROMPT[:1], PROMPT[1:2], torch.tensor([[3, 9, 8, 3, 9, 8, 3, 9]])]
    for seed, prompt in enumerate(prompts):
        with AutoDecoLogitsProcessor(heads, base, mode="sample", seed=seed) as processor:
            expected = generate(base, processor, prompt, max_new_tokens=20)
            assert torch.equal(
                generate(base, processor, prompt, max_new_tokens=20, **kwargs), expected
            )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:autodeco_ext.AutoDecoLogitsProcessor. called before")
@pytest.mark.parametrize("kwargs", ASSISTED[1:])
def test_assisted_sampling_follows_the_heads_distribution(base, heads, kwargs):
    torch.manual_seed(0)
    prompt = torch.tensor([[7, 20, 33, 7, 20, 33, 7]])
    tokens = []
    with AutoDecoLogitsProcessor(heads, base) as processor:
        options = {"max_new_tokens": 3, **kwargs, **processor.generate_kwargs()}
        for _ in range(1000):
            tokens.append(generate(base, processor, prompt, **options))
    assert pvalue(torch.cat(tokens), base, heads, prompt[0]) > 1e-3


# What must not be mistaken for the model's own scores.


def test_scores_that_are_not_the_models_come_back_untouched(base, heads):
    with AutoDecoLogitsProcessor(heads, base) as processor:
        scores = torch.randn(3, 53)
        with pytest.warns(UserWarning, match="called before the model it is attached to has run"):
            assert processor(PROMPT, scores) is scores
        with torch.no_grad():
            base(PROMPT, logits_to_keep=2)
        assert processor(PROMPT, scores) is not scores
        for ids, other in [
            (PROMPT[:2], scores[:2]),  # another batch
            (PROMPT, scores[:, :50]),  # another vocabulary
            (PROMPT[:, :2], scores),  # a position before the two
            (torch.cat([PROMPT, PROMPT], dim=1), scores),  # and after them
        ]:
            assert processor(ids, other) is other


def test_another_model_with_the_same_head_does_not_count(base, heads):
    with AutoDecoLogitsProcessor(heads, base) as processor, torch.no_grad():
        base(PROMPT, logits_to_keep=1)
        scores = torch.randn(3, 53)
        expected = processor(PROMPT, scores)
        base.lm_head(torch.randn(3, 1, HIDDEN))
        assert torch.equal(processor(PROMPT, scores), expected)


def test_other_threads_do_not_count(base, heads):
    with AutoDecoLogitsProcessor(heads, base, mode="sample", seed=0) as processor:
        expected = generate(base, processor)
        results = in_threads(
            3, lambda i: [generate(base, processor, PROMPT.roll(i, 0)) for _ in range(4)]
        )
    assert all(torch.equal(tokens, expected) for tokens in results[0])


def test_a_training_step_leaves_nothing_alive(base, heads):
    with AutoDecoLogitsProcessor(heads, base) as processor:
        base(PROMPT, labels=PROMPT).loss.backward()
        assert processor._state.last is None and processor._state.pending is None


# Attaching and detaching.


def hooks(base) -> int:
    return len(base._forward_hooks) + len(base.lm_head._forward_pre_hooks)


def test_remove_and_garbage_collection_detach(base, heads):
    before = hooks(base)
    with AutoDecoLogitsProcessor(heads, base) as processor:
        assert hooks(base) == before + 2
    assert hooks(base) == before
    with pytest.raises(RuntimeError, match=r"must be attached, got a call after remove\(\)"):
        generate(base, processor)
    processor = AutoDecoLogitsProcessor(heads, base)
    del processor
    assert hooks(base) == before


def test_a_model_with_a_processor_can_be_copied_and_pickled(base, heads):
    with AutoDecoLogitsProcessor(heads, base, mode="sample", seed=0) as processor:
        expected = generate(base, processor)
        for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
            plain = other.generate(PROMPT, max_new_tokens=8)
            assert torch.equal(plain, base.generate(PROMPT, max_new_tokens=8))
        assert torch.equal(generate(base, processor), expected)


@pytest.mark.slow
def test_a_compiled_forward_that_ignores_the_hooks_is_an_error(heads):
    base = tiny_base()
    base.forward = torch.compile(base.forward, backend="eager")
    with torch.no_grad():
        base(PROMPT, logits_to_keep=1)
        message = r"LM head must run its hook .* before compiling"
        with AutoDecoLogitsProcessor(heads, base), pytest.raises(RuntimeError, match=message):
            base(PROMPT, logits_to_keep=1)


@pytest.mark.slow
def test_a_compiled_static_cache_gives_the_tokens_of_the_eager_one(heads):
    def compiled():
        config = CompileConfig(backend="eager", fullgraph=False, mode=None)
        config._compile_all_devices = True
        return {"cache_implementation": "static", "compile_config": config}

    base = tiny_base()
    with AutoDecoLogitsProcessor(heads, base, mode="sample", seed=0) as processor:
        expected = generate(base, processor)
        assert torch.equal(generate(base, processor, **compiled()), expected)
        assert hasattr(base, "_compiled_call")


def test_a_step_without_hooks_on_a_compilable_cache_is_an_error(base, heads):
    cache = StaticCache(config=base.config, max_cache_len=16)
    with AutoDecoLogitsProcessor(heads, base) as processor, torch.no_grad():
        scores = base(PROMPT, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        processor(PROMPT, scores)
        # As after a decoding step whose compiled forward knows nothing of the hooks.
        longer = torch.cat([PROMPT, PROMPT[:, :1]], dim=1)
        with pytest.raises(RuntimeError, match="compiled forward that ignores them"):
            processor(longer, scores)


def test_warpers_behind_it_are_named(base, heads):
    with AutoDecoLogitsProcessor(heads, base) as processor:
        with pytest.warns(UserWarning, match="generate runs TopKLogitsWarper after this processor"):
            generate(base, processor, do_sample=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(base, processor, **processor.generate_kwargs())


def test_what_does_not_fit_is_refused(base, heads):
    owner = "autodeco_ext.AutoDecoLogitsProcessor"
    with pytest.raises(ValueError, match=f"{owner}: heads must have the model's hidden_size 48"):
        AutoDecoLogitsProcessor(heads, tiny_base(hidden=48))
    with pytest.raises(ValueError, match="model must not have heads of its own"):
        AutoDecoLogitsProcessor(heads, tiny_autodeco())
    with pytest.raises(TypeError, match="model must be a transformers model with an LM head"):
        AutoDecoLogitsProcessor(heads, torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=f"{owner}: heads must be an AutoDecoHeads, got Linear"):
        AutoDecoLogitsProcessor(torch.nn.Linear(2, 2), base)
    with pytest.raises(ValueError, match="mode must be 'filter' or 'sample'"):
        AutoDecoLogitsProcessor(heads, base, mode="both")
    compiled = tiny_base()
    compiled.compile(backend="eager")
    with pytest.raises(ValueError, match=r"must not be compiled yet .* got a compiled one"):
        AutoDecoLogitsProcessor(heads, compiled)
    processor = AutoDecoLogitsProcessor(heads, base)
    with pytest.raises(ValueError, match="guidance_scale must be off"):
        generate(base, processor, guidance_scale=1.5)


def test_heads_that_are_switched_off_leave_their_parameter_at_one(base):
    off = AutoDecoHeads(
        AutoDecoConfig(hidden_size=HIDDEN, enable_temperature_head=False, enable_top_p_head=False)
    )
    with AutoDecoLogitsProcessor(off, base) as processor, torch.no_grad():
        logits = base(PROMPT, past_key_values=DynamicCache()).logits[:, -1]
        torch.testing.assert_close(processor(PROMPT, logits), logits)

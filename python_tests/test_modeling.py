"""AutoDecoModelForCausalLM: how it is built, what forward returns, copies, threads."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    HIDDEN,
    IDS,
    VOCAB,
    in_threads,
    spread_heads,
    tiny_autodeco,
    tiny_base,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from autodeco_ext import AutoDecoConfig, AutoDecoHeads, AutoDecoModelForCausalLM, reference
from autodeco_ext.models.lm_head_input import LAST_HIDDEN_STATE_MODELS, capture_lm_head_input


@pytest.fixture(scope="module")
def model():
    return tiny_autodeco()


def reference_predictions(model, hidden_states, logits) -> reference.HeadPrediction:
    """In float64, from the definitions."""
    return reference.head_predictions(hidden_states.double(), logits, model.heads.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "tied"), ARCHITECTURES)
def test_forward_is_the_base_plus_the_heads_of_its_last_hidden_state(name, tied, dtype):
    base = tiny_base(name, tied=tied, dtype=dtype)
    model = AutoDecoModelForCausalLM.from_base(base)
    spread_heads(model.heads)
    with torch.no_grad():
        expected = base(IDS, output_hidden_states=True)
        output = model(IDS)
    assert torch.equal(output.logits, expected.logits) and output.logits.dtype == dtype
    temperature, top_p = reference_predictions(model, expected.hidden_states[-1], expected.logits)
    assert output.temperature.dtype == output.top_p.dtype == torch.float32
    torch.testing.assert_close(output.temperature.double(), temperature, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.top_p.double(), top_p, atol=1e-5, rtol=0)
    assert output.temperature.std() > 0.05 and output.top_p.std() > 0.02


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 3])])
def test_predictions_match_the_positions_of_the_logits(model, keep):
    with torch.no_grad():
        whole, part = model(IDS), model(IDS, logits_to_keep=keep)
    index = slice(-keep, None) if isinstance(keep, int) else keep
    for name in ("logits", "temperature", "top_p"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, index])


def test_the_output_is_the_bases_type_with_two_fields_and_works_as_a_tuple(model):
    output = model(IDS)
    base_output = tiny_base()(IDS)
    assert isinstance(output, type(base_output))
    assert list(output.keys()) == [*base_output.keys(), "temperature", "top_p"]
    as_tuple = model(IDS, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[-1], output.top_p)
    assert torch.equal(output[0], output.logits)
    loaded = pickle.loads(pickle.dumps(model(IDS, use_cache=False)))
    assert type(loaded) is type(output) and torch.equal(loaded.temperature, output.temperature)


def test_positional_arguments_and_signature_are_the_bases(model):
    import inspect

    assert inspect.signature(model.forward) == inspect.signature(tiny_base().forward)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    by_name = model(input_ids=IDS, attention_mask=mask)
    assert torch.equal(model(IDS, mask).temperature, by_name.temperature)


def test_the_base_object_stays_what_it_was_and_shares_its_weights():
    base = tiny_base()
    before = dict(base.__dict__)
    model = AutoDecoModelForCausalLM.from_base(base)
    assert type(base).__name__ == "LlamaForCausalLM" and not hasattr(base, "heads")
    assert base.__dict__.keys() == before.keys()
    assert isinstance(model, type(base)) and isinstance(model, AutoDecoModelForCausalLM)
    assert type(model).__name__ == "AutoDecoLlamaForCausalLM" and model.config is base.config
    for name, parameter in base.named_parameters():
        assert model.get_parameter(name) is parameter
    assert not hasattr(base(IDS), "temperature")


def test_a_compiled_base_does_not_bypass_the_heads():
    base = tiny_base()
    base.compile(backend="eager")
    assert AutoDecoModelForCausalLM.from_base(base)(IDS).temperature.shape == IDS.shape


def test_heads_stay_float32_whatever_the_model_is_cast_to():
    model = tiny_autodeco()
    with torch.no_grad():
        output = model(IDS)
    for cast in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()):
        narrow = cast(copy.deepcopy(model))
        assert {p.dtype for p in narrow.heads.parameters()} == {torch.float32}
        assert narrow.dtype == narrow.lm_head.weight.dtype != torch.float32
        for name, weight in model.heads.state_dict().items():
            assert torch.equal(narrow.heads.state_dict()[name], weight)
        with torch.no_grad():
            predicted = narrow(IDS).temperature
        assert predicted.dtype == torch.float32
        torch.testing.assert_close(predicted, output.temperature, atol=0.1, rtol=0)


def test_a_used_model_can_be_copied_and_pickled(model):
    model.generate(IDS, do_sample=True, max_new_tokens=2)
    expected = model(IDS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert torch.equal(other(IDS).top_p, expected.top_p)
        assert other.heads is not model.heads
        tokens = other.generate(IDS, do_sample=True, max_new_tokens=4, seed=1)
        assert torch.equal(tokens, model.generate(IDS, do_sample=True, max_new_tokens=4, seed=1))


@pytest.mark.slow
def test_a_pickle_loads_in_a_fresh_process(model, tmp_path):
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    program = (
        "import pickle, sys; model = pickle.load(open(sys.argv[1], 'rb'));"
        "import torch; print(model(torch.tensor([[1, 7]])).temperature[0, 1].item())"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "model.pickle")]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert float(printed) == pytest.approx(model(IDS[:, :2]).temperature[0, 1].item(), abs=1e-6)


def test_threads_get_the_predictions_of_their_own_inputs(model):
    inputs = [torch.full((1 + i, 3 + i), 2 + i) for i in range(4)]
    expected = [model(ids).temperature for ids in inputs]
    results = in_threads(4, lambda i: [model(inputs[i]).temperature for _ in range(20)])
    for own, got in zip(expected, results, strict=True):
        assert all(torch.equal(one, own) for one in got)


def test_a_soft_cap_after_the_head_is_in_the_logits_the_heads_see():
    config = Gemma2Config(
        **SMALL, head_dim=8, final_logit_softcapping=2.0, sliding_window=16, query_pre_attn_scalar=8
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        base.model.embed_tokens.weight.mul_(20)
    model = AutoDecoModelForCausalLM.from_base(base)
    with torch.no_grad():
        expected = base(IDS, output_hidden_states=True)
        output = model(IDS)
    assert expected.logits.abs().max() <= 2.0
    _, top_p = reference_predictions(model, expected.hidden_states[-1], expected.logits)
    torch.testing.assert_close(output.top_p.double(), top_p, atol=1e-5, rtol=0)


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
OTHERS = {
    "gemma2": lambda: Gemma2Config(**SMALL, head_dim=8, sliding_window=16),
    "gpt_oss": lambda: GptOssConfig(**SMALL, **EXPERTS, head_dim=8, sliding_window=16),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=None),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SMALL, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16
    ),
}


@pytest.mark.parametrize("name", sorted(LAST_HIDDEN_STATE_MODELS))
def test_the_compiled_path_reads_the_same_hidden_states_as_the_hook(name):
    torch.manual_seed(0)
    base = (
        AutoModelForCausalLM.from_config(OTHERS[name]()).eval()
        if name in OTHERS
        else tiny_base(name)
    )
    with torch.no_grad(), capture_lm_head_input(base.get_output_embeddings()) as captured:
        output = base(IDS, output_hidden_states=True)
    assert torch.equal(captured[0], output.hidden_states[-1])


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_output():
    model = tiny_autodeco()
    with torch.no_grad():
        expected = model(IDS, logits_to_keep=2)
        output = torch.compile(model, backend="eager")(IDS, logits_to_keep=2)
    assert output.keys() == expected.keys()
    torch.testing.assert_close(output.temperature, expected.temperature)
    torch.testing.assert_close(output.top_p, expected.top_p)


def test_without_labels_the_bases_graph_is_untouched():
    model = tiny_autodeco()
    model(IDS).logits.sum().backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()
    output = model(IDS)
    (output.temperature.sum() + output.top_p.sum()).backward()
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient and all(name.startswith("heads.") for name in with_gradient)


# Building.


def test_heads_can_be_switched_off_and_sized():
    model = AutoDecoModelForCausalLM.from_base(
        tiny_base(), enable_top_p_head=False, temperature_hidden_size=16
    )
    assert model.heads.top_p_head is None
    assert model.heads.temp_head.mlp[0].weight.shape == (16, HIDDEN)
    assert torch.equal(model(IDS).top_p, torch.ones(2, 5))
    assert model.autodeco_config.temperature_hidden_size == 16


def test_from_base_takes_a_folder_and_loading_options(tmp_path):
    base = tiny_base()
    base.save_pretrained(tmp_path)
    model = AutoDecoModelForCausalLM.from_base(tmp_path, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.autodeco_config.base_model_name_or_path == str(tmp_path)
    assert isinstance(model.heads, AutoDecoHeads) and not model.training


def test_the_auto_classes_know_it():
    assert type(AutoConfig.for_model("autodeco", hidden_size=4)) is AutoDecoConfig
    config = AutoDecoConfig.from_base(LlamaConfig(**SMALL))
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == "AutoDecoLlamaForCausalLM"
    assert model(IDS).temperature.shape == IDS.shape


def test_what_cannot_carry_heads_is_refused(tmp_path):
    from_base = AutoDecoModelForCausalLM.from_base
    with pytest.raises(ValueError, match="without AutoDeco heads, got AutoDecoLlamaForCausalLM"):
        from_base(tiny_autodeco())
    with pytest.raises(ValueError, match=r"decoder-only causal language model .* got LlamaModel"):
        from_base(LlamaModel(LlamaConfig(**SMALL)))
    small_t5 = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match=r"decoder-only .* got T5ForConditionalGeneration"):
        from_base(T5ForConditionalGeneration(small_t5))
    with pytest.raises(TypeError, match=r"further arguments require the name .*\['dtype'\]"):
        from_base(tiny_base(), dtype=torch.bfloat16)
    with pytest.raises(OSError, match="base model must be a folder or a hub repository"):
        from_base(tmp_path / "nothing")
    dispatched = tiny_base()
    dispatched.forward = dispatched.forward
    with pytest.raises(ValueError, match=r"not have its methods replaced .* forward"):
        from_base(dispatched)
    with pytest.raises(TypeError, match="must be built with from_base or from_pretrained"):
        AutoDecoModelForCausalLM(AutoDecoConfig(hidden_size=4))


@pytest.mark.slow
def test_importing_the_package_does_not_import_transformers():
    program = "import sys, autodeco_ext; print('transformers' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"

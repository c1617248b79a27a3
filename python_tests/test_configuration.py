"""AutoDecoConfig: the base's configuration survives every round trip, bad fields are explained."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from transformers import (
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from autodeco_ext.models import AutoDecoConfig

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
BASES = {
    "llama": LlamaConfig(**SMALL),
    "llama_tied_bfloat16": LlamaConfig(
        **SMALL,
        tie_word_embeddings=True,
        dtype="bfloat16",
        rope_parameters=LLAMA3_ROPE,
        eos_token_id=[2, 7],
        architectures=["LlamaForCausalLM"],
    ),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, use_sliding_window=True, max_window_layers=1, head_dim=32),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, dtype=torch.float16),
    "gpt_oss": GptOssConfig(**SMALL),
    "gpt2": GPT2Config(n_embd=48, n_head=4, n_layer=2),
    "gemma3": Gemma3Config(text_config={"hidden_size": 80}, vision_config={"hidden_size": 16}),
}
OPTIONS = {
    "enable_temperature_head": False,
    "enable_top_p_head": True,
    "use_enhanced_features": False,
    "temperature_hidden_size": 8,
    "top_p_hidden_size": 16,
}


def fields(config: PretrainedConfig) -> dict:
    """What a configuration says, without where it was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def reloaded(config: AutoDecoConfig, folder) -> AutoDecoConfig:
    config.save_pretrained(folder)
    return AutoDecoConfig.from_pretrained(folder)


@pytest.fixture(params=list(BASES))
def base(request: pytest.FixtureRequest) -> PretrainedConfig:
    return BASES[request.param]


def test_the_base_configuration_comes_back_exactly(base, tmp_path) -> None:
    config = AutoDecoConfig.from_base(base)
    for copied in (config, reloaded(config, tmp_path), copy.deepcopy(config)):
        rebuilt = copied.base_config()
        assert type(rebuilt) is type(base)
        assert fields(rebuilt) == fields(base)


def test_own_fields_survive_a_round_trip(base, tmp_path) -> None:
    config = AutoDecoConfig.from_base(base, base_model_name_or_path="some/base", **OPTIONS)
    for copied in (reloaded(config, tmp_path), pickle.loads(pickle.dumps(config))):
        assert fields(copied) == fields(config)
        for name, value in (OPTIONS | {"base_model_name_or_path": "some/base"}).items():
            assert getattr(copied, name) == value
        assert copied.hidden_size == base.get_text_config().hidden_size
        assert copied.base_config().name_or_path == "some/base"


def test_the_file_has_the_released_layout(tmp_path) -> None:
    base = BASES["llama_tied_bfloat16"]
    AutoDecoConfig.from_base(base, base_model_name_or_path="some/base").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "autodeco"
    assert written["architectures"] == ["AutoDecoModelForCausalLM"]
    assert written["base_model_name_or_path"] == "some/base"
    assert written["base_model_type"] == "llama"
    for name in ("enable_temperature_head", "enable_top_p_head", "use_enhanced_features"):
        assert written[name] is True
    assert written["temperature_hidden_size"] == written["top_p_hidden_size"] == 256
    assert written["vocab_size"] == 99 and written["tie_word_embeddings"] is True
    assert written["dtype"] == "bfloat16"
    assert "base_fields" not in written


def test_a_released_file_of_transformers_4_loads(tmp_path) -> None:
    released = {
        "architectures": ["AutoDecoModelForCausalLM"],
        "model_type": "autodeco",
        "base_model_name_or_path": "Qwen/Qwen3",
        "base_model_type": "qwen3",
        "enable_temperature_head": True,
        "enable_top_p_head": True,
        "use_enhanced_features": True,
        "temperature_hidden_size": 256,
        "top_p_hidden_size": 256,
        **SMALL,
        "rope_theta": 12345.0,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.55.0",
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    config = AutoDecoConfig.from_pretrained(tmp_path)
    base = config.base_config()
    assert isinstance(base, Qwen3Config)
    assert base.rope_parameters["rope_theta"] == 12345.0
    assert config.dtype == base.dtype == torch.bfloat16
    # Version 4 wrote tie_word_embeddings only where it was not true, which was its default.
    assert base.tie_word_embeddings is True
    assert fields(reloaded(config, tmp_path).base_config()) == fields(base)
    (tmp_path / "config.json").write_text(json.dumps(released | {"tie_word_embeddings": False}))
    assert AutoDecoConfig.from_pretrained(tmp_path).base_config().tie_word_embeddings is False


def test_base_fields_are_attributes() -> None:
    config = AutoDecoConfig.from_base(BASES["llama"])
    assert (config.vocab_size, config.num_attention_heads) == (99, 4)
    config.vocab_size = 128
    assert config.base_config().vocab_size == config.to_dict()["vocab_size"] == 128
    assert BASES["llama"].vocab_size == 99
    with pytest.raises(AttributeError, match="no attribute 'n_embd'"):
        _ = config.n_embd


def test_a_hidden_size_is_enough() -> None:
    config = AutoDecoConfig(hidden_size=64)
    assert (config.hidden_size, config.temperature_hidden_size, config.base_model_type) == (
        64,
        256,
        None,
    )
    assert config.get_text_config() is config
    with pytest.raises(ValueError, match="base_model_type must be set, got None"):
        config.base_config()


def test_the_hidden_size_is_found_in_the_base_fields() -> None:
    assert AutoDecoConfig(base_model_type="gpt2", n_embd=48, n_head=4).hidden_size == 48
    gemma = AutoDecoConfig(base_model_type="gemma3", text_config={"hidden_size": 80})
    assert gemma.hidden_size == 80
    assert gemma.get_text_config().hidden_size == 80


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "hidden_size must be >= 1, got None"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be >= 1, got 0"),
        ({"hidden_size": -64}, ValueError, "hidden_size must be >= 1, got -64"),
        ({"hidden_size": "64"}, TypeError, "hidden_size must be an int, got str"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an int, got bool"),
        (
            {"hidden_size": 8, "top_p_hidden_size": 0},
            ValueError,
            "top_p_hidden_size must be >= 1, got 0",
        ),
        (
            {"hidden_size": 8, "use_enhanced_features": "no"},
            TypeError,
            "use_enhanced_features must be a bool, got str",
        ),
        (
            {"hidden_size": 8, "base_model_type": "lama"},
            ValueError,
            "base_model_type must be a model type that transformers knows, .*got 'lama'",
        ),
    ],
)
def test_bad_fields_are_explained(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^autodeco_ext.AutoDecoConfig: " + text):
        AutoDecoConfig(**arguments)


def test_a_hidden_size_that_does_not_fit_the_base_is_an_error() -> None:
    config = AutoDecoConfig(
        hidden_size=32, base_model_type="gemma3", text_config={"hidden_size": 8}
    )
    with pytest.raises(ValueError, match=r"hidden_size must be that of the base .*8, got 32"):
        config.base_config()


def test_from_base_wants_the_configuration_of_a_base() -> None:
    for wrong in ({"hidden_size": 64}, AutoDecoConfig(hidden_size=64)):
        with pytest.raises(TypeError, match="must be the configuration of a base model, got"):
            AutoDecoConfig.from_base(wrong)
    with pytest.raises(ValueError, match="base_config must have a hidden_size"):
        AutoDecoConfig.from_base(PretrainedConfig())

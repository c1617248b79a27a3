"""Checkpoints: released format in and out, merged ones, and where they and bases are found."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoints import edit_config, save_heads_only
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import (
    ARCHITECTURES,
    HIDDEN,
    IDS,
    tiny_autodeco,
    tiny_base,
)
from transformers import AutoModelForCausalLM, GenerationConfig

from autodeco_ext import AutoDecoModelForCausalLM

NAMES = [
    f"{head}.mlp.{layer}.{kind}"
    for head in ("temp_head", "top_p_head")
    for layer in (0, 2)
    for kind in ("weight", "bias")
]
load = AutoDecoModelForCausalLM.from_pretrained


@pytest.fixture
def saved(tmp_path):
    """Folder of a heads-only checkpoint whose base lies beside it."""
    save_heads_only(tmp_path)
    return tmp_path / "heads"


def assert_same_predictions(loaded, model):
    with torch.no_grad():
        got, expected = loaded(IDS), model(IDS)
    for name in ("logits", "temperature", "top_p"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


def test_a_heads_only_checkpoint_has_the_released_format(saved):
    with safe_open(saved / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_tensor(name).dtype for name in shapes}
    assert sorted(shapes) == sorted(NAMES) and dtypes == {torch.float32}
    assert shapes["temp_head.mlp.0.weight"] == [256, HIDDEN]
    assert shapes["top_p_head.mlp.0.weight"] == [256, HIDDEN + 5]
    for head in ("temp_head", "top_p_head"):
        assert shapes[f"{head}.mlp.0.bias"] == [256]
        assert shapes[f"{head}.mlp.2.weight"] == [1, 256]
        assert shapes[f"{head}.mlp.2.bias"] == [1]
    config = json.loads((saved / "config.json").read_text())
    expected = {
        "model_type": "autodeco",
        "architectures": ["AutoDecoModelForCausalLM"],
        "base_model_name_or_path": str(saved.parent / "base"),
        "base_model_type": "llama",
        "enable_temperature_head": True,
        "enable_top_p_head": True,
        "use_enhanced_features": True,
        "temperature_hidden_size": 256,
        "top_p_hidden_size": 256,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
    }
    assert {name: config.get(name) for name in expected} == expected
    assert (saved / "generation_config.json").is_file()


@pytest.mark.parametrize(("name", "tied"), ARCHITECTURES)
def test_saving_and_loading_gives_the_same_model(tmp_path, name, tied):
    model = save_heads_only(tmp_path, name, tied)
    for loaded in (
        load(tmp_path / "heads"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "heads"),
    ):
        assert type(loaded) is type(model) and not loaded.training
        assert_same_predictions(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    assert_same_predictions(load(tmp_path / "again"), model)


def test_a_released_checkpoint_with_another_file_name_and_bfloat16_heads_loads(saved):
    model = load(saved)
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    (saved / "generation_config.json").unlink()
    narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    temperature = {n: t for n, t in narrow.items() if n.startswith("temp_head.")}
    top_p = {n: t for n, t in narrow.items() if n.startswith("top_p_head.")}
    save_file(temperature, saved / "end_head.safetensors")
    save_file(top_p, saved / "zz.safetensors")
    # A file the split script leaves behind; it names files that are not there.
    index = {"weight_map": {"llm.lm_head.weight": "model-00001-of-00002.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    edit_config(saved, base_architectures="absent", transformers_version="4.55.0")
    loaded = load(saved)
    for name, tensor in loaded.heads.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, narrow[name].float())
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_bfloat16_base_keeps_float32_heads(tmp_path):
    model = save_heads_only(tmp_path, dtype=torch.bfloat16)
    for loaded in (load(tmp_path / "heads"), load(tmp_path / "heads", dtype=torch.bfloat16)):
        assert loaded.lm_head.weight.dtype == torch.bfloat16
        assert loaded.heads.temp_head.mlp[0].weight.dtype == torch.float32
        assert_same_predictions(loaded, model)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "heads", dtype=torch.float32)
    assert auto.lm_head.weight.dtype == torch.float32


def test_a_base_without_a_name_must_be_given_again(tmp_path):
    base = tiny_base()
    model = AutoDecoModelForCausalLM.from_base(base)
    model.save_pretrained(tmp_path)
    message = r"base_model must be given \(the checkpoint holds only the heads, .* got None for"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    loaded = load(tmp_path, base_model=base)
    assert_same_predictions(loaded, model)
    assert loaded.lm_head.weight is base.lm_head.weight
    other = load(tmp_path, base_model=tiny_base("qwen2"))
    assert other.autodeco_config.base_model_type == "qwen2"
    with pytest.raises(TypeError, match=r"must be no loading options for it, got \['dtype'\]"):
        load(tmp_path, base_model=base, dtype=torch.bfloat16)


def test_base_model_replaces_the_one_in_the_config(saved, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "base", moved)
    with pytest.raises(OSError, match=r"base model must be .* \(base_model= names another one\)"):
        load(saved)
    with pytest.raises(OSError, match=r"from_base: the base model .* can be reached, got"):
        AutoDecoModelForCausalLM.from_base(str(tmp_path / "base"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="from_base: the base model's folder must hold a config"):
        AutoDecoModelForCausalLM.from_base(tmp_path / "empty")
    loaded = load(saved, base_model=str(moved))
    assert loaded.autodeco_config.base_model_name_or_path == str(moved)
    loaded.save_pretrained(tmp_path / "again")
    assert_same_predictions(load(tmp_path / "again"), loaded)


def test_the_generation_config_travels_with_the_heads(saved):
    model = load(saved)
    model.generation_config = GenerationConfig(max_new_tokens=3, do_sample=True)
    model.save_pretrained(saved)
    loaded = load(saved)
    assert loaded.generation_config.max_new_tokens == 3
    assert loaded.generate(IDS).shape == (2, 8)


def test_only_the_main_process_writes(tmp_path):
    model = tiny_autodeco()
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    written = load_file(tmp_path / "model.safetensors")
    for name, tensor in model.heads.state_dict().items():
        assert torch.equal(written[name], tensor + 1)


def test_a_head_that_is_off_needs_no_tensors_and_ignores_them(tmp_path):
    model = save_heads_only(tmp_path, enable_top_p_head=False)
    assert_same_predictions(load(tmp_path / "heads"), model)
    save_heads_only(tmp_path / "both")
    edit_config(tmp_path / "both" / "heads", enable_top_p_head=False)
    loaded = load(tmp_path / "both" / "heads")
    assert loaded.heads.top_p_head is None
    assert torch.equal(loaded(IDS).top_p, torch.ones(2, 5))


# Merged checkpoints.


def save_merged(folder, model, shards=2):
    """All tensors, the base's under llm., in shards with an index."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    base = {f"llm.{n}": t for n, t in model.state_dict().items() if not n.startswith("heads.")}
    if model.config.tie_word_embeddings:
        del base["llm.lm_head.weight"]
    tensors.update(base)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(sorted(tensors.items())[shard::shards])
        save_file({n: t.clone() for n, t in part.items()}, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("name", "tied"), ARCHITECTURES)
def test_a_merged_checkpoint_loads_without_its_base(tmp_path, name, tied):
    model = save_heads_only(tmp_path, name, tied)
    save_merged(tmp_path / "merged", model)
    shutil.rmtree(tmp_path / "base")
    for loaded in (
        load(tmp_path / "merged"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    ):
        assert type(loaded) is type(model)
        assert_same_predictions(loaded, model)
        tokens = loaded.generate(IDS, do_sample=True, max_new_tokens=4, seed=0)
        assert torch.equal(tokens, model.generate(IDS, do_sample=True, max_new_tokens=4, seed=0))


def test_the_weights_of_a_merged_checkpoint_win_over_the_named_base(tmp_path):
    model = save_heads_only(tmp_path)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    save_merged(tmp_path / "merged", model)
    assert_same_predictions(load(tmp_path / "merged"), model)


def test_a_merged_checkpoint_with_missing_base_tensors_is_refused(tmp_path):
    model = save_heads_only(tmp_path)
    save_merged(tmp_path / "merged", model, shards=1)
    file = tmp_path / "merged" / "model-00001-of-00001.safetensors"
    tensors = load_file(file)
    del tensors["llm.model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, file.name)}
    index_file = tmp_path / "merged" / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, **index}))
    with pytest.raises(ValueError, match=r"every base tensor under llm\., got none for .*norm"):
        load(tmp_path / "merged")


# Finding.


def test_a_hub_repository_is_fetched_with_its_revision(saved, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(saved)

    base_options = {}
    load_base = AutoModelForCausalLM.from_pretrained

    def watched(name, **options):
        base_options.update(options)
        return load_base(name, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    load("someone/heads", revision="v2", local_files_only=True)
    assert asked == {"name": "someone/heads", "revision": "v2", "local_files_only": True} | {
        "allow_patterns": ["*.json", "*.safetensors"]
    }
    assert base_options == {"local_files_only": True}  # the revision is the heads' alone


def test_heads_on_a_gguf_base_find_its_file_again(saved, monkeypatch):
    given = {}
    load_base = AutoModelForCausalLM.from_pretrained

    def watched(name, **options):
        given.update(options)
        return load_base(name)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    edit_config(saved, quantization_config={"quant_method": "gguf", "gguf_file": "base.gguf"})
    load(saved)
    assert given == {"gguf_file": "base.gguf"}
    given.clear()
    load(saved, base_model=saved.parent / "base")
    assert given == {}

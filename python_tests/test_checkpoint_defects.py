"""Defects of checkpoints must be refused, and named with tensor and file."""

from __future__ import annotations

import shutil

import pytest
import torch
from checkpoints import edit_config, edit_tensors, save_heads_only
from tiny_models import HIDDEN, tiny_autodeco, tiny_base
from transformers import AutoModelForCausalLM

from autodeco_ext import AutoDecoModelForCausalLM

load = AutoDecoModelForCausalLM.from_pretrained


@pytest.fixture
def saved(tmp_path):
    """Folder of a heads-only checkpoint whose base lies beside it."""
    save_heads_only(tmp_path)
    return tmp_path / "heads"


def test_a_missing_tensor_is_named_with_shape_and_file(saved):
    edit_tensors(saved, lambda tensors: tensors.pop("top_p_head.mlp.2.bias"))
    message = r"tensor top_p_head\.mlp\.2\.bias must be present with shape \[1\] .*heads/model\.saf"
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize("name", ["temp_head.mlp.4.weight", "extra.weight", "heads.temp_head.x"])
def test_an_extra_tensor_is_named_with_shape_and_file(saved, name):
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(3, 2)}))
    with pytest.raises(ValueError, match=rf"{name} of shape \[3, 2\] in .*model\.safetensors"):
        load(saved)


def test_a_wrong_shape_is_named_with_both_shapes_and_file(saved):
    wrong = torch.zeros(256, HIDDEN + 1)
    edit_tensors(saved, lambda tensors: tensors.update({"top_p_head.mlp.0.weight": wrong}))
    message = (
        rf"tensor top_p_head\.mlp\.0\.weight must have shape \[256, {HIDDEN + 5}\] .*"
        rf" got \[256, {HIDDEN + 1}\] in .*heads/model\.safetensors"
    )
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_a_base_of_another_width_is_named_with_both_shapes_and_file(saved):
    message = (
        rf"tensor temp_head\.mlp\.0\.weight must have shape \[256, 48\] \(base model"
        rf" LlamaForCausalLM has hidden_size 48\), got \[256, {HIDDEN}\] in .*model\.safetensors"
    )
    with pytest.raises(ValueError, match=message):
        load(saved, base_model=tiny_base(hidden=48))


def test_a_config_of_another_width_is_named(saved):
    edit_config(saved, hidden_size=48)
    message = rf"shape \[256, 48\] \(hidden_size 48 in config.json\), got \[256, {HIDDEN}\] in"
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_a_tensor_in_two_files_is_refused(saved):
    shutil.copy(saved / "model.safetensors", saved / "other.safetensors")
    with pytest.raises(ValueError, match=r"must occur once, got it in .*model.* and in .*other"):
        load(saved)


def test_unreadable_and_absent_files_are_named(saved, tmp_path):
    (saved / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"model\.safetensors must be a safetensors file"):
        load(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold a \*\.safetensors file"):
        load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        load(saved)


def test_integer_heads_are_refused(saved):
    def edit(tensors):
        tensors["temp_head.mlp.2.bias"] = torch.zeros(1, dtype=torch.int8)

    edit_tensors(saved, edit)
    with pytest.raises(ValueError, match=r"temp_head\.mlp\.2\.bias must be float32, .*int8"):
        load(saved)


def test_other_models_are_not_taken_for_a_checkpoint(saved, tmp_path):
    with pytest.raises(ValueError, match=r"model_type in config.json must be 'autodeco' .*'llama'"):
        load(tmp_path / "base")
    edit_config(saved, base_model_name_or_path=str(saved))
    with pytest.raises(ValueError, match="base_model must be a model without AutoDeco heads"):
        load(saved)
    with pytest.raises(ValueError, match="base_model must be a model without AutoDeco heads"):
        load(saved, base_model=tiny_autodeco())


def test_a_repository_that_cannot_be_reached_is_one_sentence(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    message = r"folder or a hub repository that can be reached, got 'someone/heads' .*no network"
    with pytest.raises(OSError, match=message):
        load("someone/heads")


def test_saving_beside_other_weights_is_refused(tmp_path):
    tiny_base().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"must hold no other \*\.safetensors files .*00001"):
        tiny_autodeco().save_pretrained(tmp_path)
    tiny_base().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"must not be that of another model, got .*model\.saf"):
        tiny_autodeco().save_pretrained(tmp_path / "base")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.model_type == "llama"
    with pytest.raises(ValueError, match="push_to_hub must be False"):
        tiny_autodeco().save_pretrained(tmp_path, push_to_hub=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["temp_head.mlp.0.weight", "top_p_head.mlp.2.bias"])
def test_nan_and_infinity_are_named_with_place_and_file(saved, name, value, dtype):
    def edit(tensors):
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[-1] = value

    edit_tensors(saved, edit)
    place = "255, 31" if name.endswith("weight") else "0"
    message = rf"tensor {name} must be free of NaN and infinity, got {value} at index \[{place}\]"
    with pytest.raises(ValueError, match=message + r" in .*heads/model\.safetensors"):
        load(saved)


@pytest.mark.parametrize("wrong", [5, b"heads", None, torch.nn.Linear(1, 1)])
def test_what_is_neither_model_nor_name_is_a_type_error(saved, wrong):
    kind = type(wrong).__name__
    message = "base_model must be a transformers model, or the name or folder of one, got"
    with pytest.raises(TypeError, match=rf"CausalLM\.from_base: {message} {kind}$"):
        AutoDecoModelForCausalLM.from_base(wrong)
    with pytest.raises(TypeError, match=rf"from_pretrained: the checkpoint must .* got {kind}$"):
        load(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=rf"CausalLM\.from_pretrained: {message} {kind}$"):
            load(saved, base_model=wrong)

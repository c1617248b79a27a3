"""Tiny checkpoints for tests, and edits that damage them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file
from tiny_models import spread_heads, tiny_base

from autodeco_ext import AutoDecoModelForCausalLM


def save_heads_only(folder, name="llama", tied=False, dtype=torch.float32, **options):
    """A base in folder/base, heads on it in folder/heads; returns the model that was saved."""
    tiny_base(name, tied=tied, dtype=dtype).save_pretrained(folder / "base")
    model = AutoDecoModelForCausalLM.from_base(folder / "base", **options)
    if not options:
        spread_heads(model.heads)
    model.save_pretrained(folder / "heads")
    return model


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    config = {name: value for name, value in config.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")

"""What decode_step allocates at the sizes of a large model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cuda_tools import extra_bytes, tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

import autodeco_ext
from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads


class Allocations(TorchDispatchMode):
    """Counts the bytes of what is made, whether it is returned or not."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(tuple(args))}
        for tensor in tensors_of(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:  # no view
                self.bytes += storage.nbytes()
        return result


def real_step(rows: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Any, int]:
    """A call of decode_step with the sizes of a large model, and what docs/kernels.md allows it
    for its products: both of them, and hidden states in float32 where they are something else."""
    config = AutoDecoConfig(hidden_size=4096)
    heads = AutoDecoHeads(config).to(device)
    hidden = torch.randn(rows, 4096, device=device).to(dtype)
    vocab = 1000 if device == "cpu" else 151_936
    logits = torch.randn(rows, vocab, device=device, dtype=dtype)
    widths = config.temperature_hidden_size + config.top_p_hidden_size
    converted = 4096 if dtype != torch.float32 else 0
    call = functools.partial(autodeco_ext.decode_step, hidden, logits, heads, seed=1)
    return call, rows * 4 * (widths + converted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_makes_its_products_and_little_more(dtype: torch.dtype) -> None:
    rows = 16
    call, products = real_step(rows, dtype, "cpu")
    with Allocations() as allocations:
        call()
    assert products <= allocations.bytes <= products + 64 * rows


def test_a_step_of_a_real_size_on_cuda_holds_the_memory_of_its_products_besides(cuda) -> None:
    rows = 256
    call, products = real_step(rows, torch.bfloat16, cuda)
    assert extra_bytes(call) <= products + 2**20

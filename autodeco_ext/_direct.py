"""Calls the CPU sampler without torch's dispatcher where nobody could tell the difference.

The dispatcher and 17 arguments take longer than the draw from a small row. This file decides
whether anything but the result is wanted of the call; csrc/python/direct_sample.cpp decides
whether the arguments are plain tensors and valid values. If either says no, the registered op does
the work.
"""

from __future__ import annotations

import torch

from autodeco_ext._load import _extension

_TAKES_TENSORS = _extension.use_tensor_type(torch.Tensor)
try:
    _local_keys = torch._C._dispatch_tls_local_include_set
    _num_function_modes = torch._C._len_torch_function_stack
    _profiler_is_on = torch.autograd._profiler_enabled
    # What a thread adds to the dispatch keys of every call, outside and inside of inference mode.
    # Function transforms, dispatch modes, tracers and fake tensors add keys of their own.
    _always = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    _outside = _always | torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    _ORDINARY_KEYS = (_outside.raw_repr(), _always.raw_repr())
except AttributeError:  # torch promises none of these names; without one nothing is direct
    _TAKES_TENSORS = False


def _only_the_result_is_wanted() -> bool:
    """No graph, tracer, mode, transform or profiler must learn that the op was called."""
    return (
        _TAKES_TENSORS
        and not torch.compiler.is_compiling()
        and not _profiler_is_on()
        and _num_function_modes() == 0
        and _local_keys().raw_repr() in _ORDINARY_KEYS
    )


def sample_directly(
    logits: torch.Tensor,
    temperature: object,
    top_p: object,
    top_k: object,
    min_p: object,
    valid_vocab: object,
    seed: object,
    offset: object,
) -> torch.Tensor | None:
    """Tokens, or None if the registered op must do it, which names invalid rows and values."""
    if not logits.is_cpu or not _only_the_result_is_wanted():
        return None
    if type(seed) is torch.Tensor:  # taken only if it is what the tokens are: an int64 for each row
        tokens = torch.empty_like(seed)
    else:
        tokens = torch.empty(logits.shape[:-1], dtype=torch.int64)
    written = _extension.sample_directly(
        logits, temperature, top_p, top_k, min_p, valid_vocab, seed, offset, tokens
    )
    return tokens if written else None

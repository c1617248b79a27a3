"""The input of a model's LM head: the hidden states that the AutoDeco heads read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn

# Architectures whose LM head's input is hidden_states[-1] (a test compares them). Under
# torch.compile the hook below cannot be used, and an architecture that scales or projects in
# between would silently give the heads something else.
LAST_HIDDEN_STATE_MODELS = frozenset(
    {"gemma2", "gpt_oss", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"}
)


@dataclass(frozen=True)
class _Capture:
    """What the context that is active wants of which LM head."""

    lm_head: nn.Module
    inputs: list[torch.Tensor]
    one_row: bool


_active: ContextVar[_Capture | None] = ContextVar("autodeco_ext_lm_head_input", default=None)
_install_lock = threading.Lock()


def _capture_hook(module: nn.Module, args: tuple) -> tuple | None:
    # One permanent function that holds nothing: what it captures goes to the context that asked.
    # Adding and removing a hook per forward pass would race between threads, and tensors kept on
    # the module break deepcopy and pickle.
    if torch.compiler.is_compiling():
        return None
    active = _active.get()
    if active is None or active.lm_head is not module or not args:
        return None
    active.inputs.append(args[0])
    return (last_row(args[0]), *args[1:]) if active.one_row else None


def last_row(hidden_states: torch.Tensor) -> torch.Tensor:
    """[batch, positions, hidden] -> [1, 1, hidden], of the first sequence."""
    return hidden_states[:1, -1:]


@contextmanager
def capture_lm_head_input(
    lm_head: nn.Module, *, one_row: bool = False
) -> Iterator[list[torch.Tensor]]:
    """Collect the inputs of calls of lm_head in this thread into the yielded list.

    one_row: let lm_head multiply the last_row of its input only.
    """
    if _capture_hook not in lm_head._forward_pre_hooks.values():
        with _install_lock:
            if _capture_hook not in lm_head._forward_pre_hooks.values():
                lm_head.register_forward_pre_hook(_capture_hook)
    captured: list[torch.Tensor] = []
    token = _active.set(_Capture(lm_head, captured, one_row))
    try:
        yield captured
    finally:
        _active.reset(token)


def kept_positions(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    """Return the index along the sequence that logits_to_keep of a Hugging Face forward means."""
    if isinstance(logits_to_keep, int):
        return slice(-logits_to_keep, None) if logits_to_keep else slice(None)
    return logits_to_keep

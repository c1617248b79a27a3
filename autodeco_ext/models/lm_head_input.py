"""The input of a model's LM head: the hidden states that the AutoDeco heads read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

# Architectures whose LM head's input is hidden_states[-1] (a test compares them). Under
# torch.compile the hook below cannot be used, and an architecture that scales or projects in
# between would silently give the heads something else.
LAST_HIDDEN_STATE_MODELS = frozenset(
    {"gemma2", "gpt_oss", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"}
)

_active: ContextVar[tuple[nn.Module, list[torch.Tensor]] | None] = ContextVar(
    "autodeco_ext_lm_head_input", default=None
)
_install_lock = threading.Lock()


def _capture_hook(module: nn.Module, args: tuple) -> None:
    # One permanent function that holds nothing: what it captures goes to the context that asked.
    # Adding and removing a hook per forward pass would race between threads, and tensors kept on
    # the module break deepcopy and pickle.
    if torch.compiler.is_compiling():
        return
    active = _active.get()
    if active is not None and active[0] is module and args:
        active[1].append(args[0])


@contextmanager
def capture_lm_head_input(lm_head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the inputs of calls of lm_head in this thread into the yielded list."""
    if _capture_hook not in lm_head._forward_pre_hooks.values():
        with _install_lock:
            if _capture_hook not in lm_head._forward_pre_hooks.values():
                lm_head.register_forward_pre_hook(_capture_hook)
    captured: list[torch.Tensor] = []
    token = _active.set((lm_head, captured))
    try:
        yield captured
    finally:
        _active.reset(token)


def kept_positions(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    """Return the index along the sequence that logits_to_keep of a Hugging Face forward means."""
    if isinstance(logits_to_keep, int):
        return slice(-logits_to_keep, None) if logits_to_keep else slice(None)
    return logits_to_keep

"""An LM head and a loss over hidden states: the released formula, and two fused cross entropies.

Arguments of all: hidden states [tokens, H], the LM head's weight [V, H], heads, labels [tokens].

Liger-Kernel and Apple's cut-cross-entropy have another, simpler loss. They show what an LM head and
a loss cost without the logits in memory, gradients for the hidden states included.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from autodeco_ext import AutoDecoHeads
from bench.fetch_peers import requirement
from bench.providers import NOT_FETCHED, PEERS, Missing, Provider, torch_heads, torch_losses

# float32 copies of the logits that the released formula holds at its peak; measured.
_COPIES = 25
_FOLDER = PEERS / "linear_losses"

Result = tuple[Tensor, Tensor]  # the mean loss; the heads' gradients, one after the other


def with_gradients(loss: Callable[..., Tensor]) -> Callable[..., Result]:
    """loss(arguments) is the mean loss; the base is frozen."""

    def run(hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor) -> Result:
        mean = loss(hidden, weight, heads, labels)
        gradients = torch.autograd.grad(mean, list(heads.parameters()))
        return mean.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    return run


def released(hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor) -> Tensor:
    """The mean loss from the logits of all tokens."""
    with torch.no_grad():
        logits = F.linear(hidden, weight)
    temperature, top_p = torch_heads.predict(heads, hidden, logits)
    return torch_losses.released(logits, temperature, top_p, labels).loss.mean()


def released_chunked(
    hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor
) -> Result:
    """with_gradients(released) a few tokens at a time, so that memory does not grow with them."""
    of_chunk = with_gradients(released)
    loss, gradients = torch.zeros(()), torch.zeros(())
    for states, targets in zip(
        hidden.split(torch_losses.CHUNK), labels.split(torch_losses.CHUNK), strict=True
    ):
        share = len(targets) / len(labels)
        mean, of_heads = of_chunk(states, weight, heads, targets)
        loss, gradients = loss + share * mean, gradients + share * of_heads
    return loss, gradients


def refuses(hidden: Tensor, weight: Tensor, *_: object) -> str:
    """Why the released formula cannot run with so many tokens, or nothing."""
    needed = _COPIES * 4 * len(hidden) * len(weight)
    if hidden.is_cuda:
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed < 0.8 * free:
        return ""
    return f"needs about {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free"


def _fetched(
    package: str, module: str, loss: Callable[[ModuleType], Callable[..., Tensor]], device: str
) -> Provider | Missing:
    """A cross entropy of a package; loss(module)(hidden, weight, labels) is its mean."""
    if device != "cuda":
        return Missing("runs on CUDA only: its kernels are Triton")
    if not _FOLDER.is_dir():
        return Missing(NOT_FETCHED)
    if str(_FOLDER) not in sys.path:
        sys.path.append(str(_FOLDER))
    try:
        cross_entropy = loss(importlib.import_module(module))
    except ImportError as error:  # such as a torch without Triton
        return Missing(f"does not import: {error}")

    def run(hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor) -> Tensor:
        hidden = hidden.detach().requires_grad_()
        mean = cross_entropy(hidden, weight, labels)
        torch.autograd.grad(mean, hidden)
        return mean.detach()

    return Provider(run, _is_cross_entropy, package=requirement(package))


def _is_cross_entropy(
    mean: Tensor, hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor
) -> bool:
    expected = F.cross_entropy(F.linear(hidden, weight).double(), labels)
    return bool(torch.isclose(mean.double(), expected, rtol=1e-2))


def liger(device: str) -> Provider | Missing:
    def loss(module: ModuleType) -> Callable[..., Tensor]:
        function = module.LigerFusedLinearCrossEntropyLoss()
        return lambda hidden, weight, labels: function(weight, hidden, labels)

    name = "liger_kernel.transformers.fused_linear_cross_entropy"
    return _fetched("liger-kernel", name, loss, device)


def cut(device: str) -> Provider | Missing:
    name = "cut_cross_entropy"
    return _fetched("cut-cross-entropy", name, lambda it: it.linear_cross_entropy, device)

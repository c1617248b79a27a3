"""One call of linear_autodeco_loss, and what it must return by the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autodeco_ext import linear_autodeco_loss, reference
from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads

HIDDEN, VOCAB = 12, 40
# Products of float32 and the loss op (1e-5 of the loss, 1e-4 of a gradient) against float64.
LOSS = {"rtol": 3e-5, "atol": 1e-6}
GRADIENT = {"rtol": 5e-4, "atol": 2e-6}
# The same call in other chunks: only torch's products round differently.
CHUNKS = {"rtol": 2e-5, "atol": 1e-7}
# The same of the whole tensor, the figures of the docstring: relative to its norm, and of the
# gradients of a 16-bit base, which are rounded to 16 bits chunk by chunk.
CHUNKS_NORM = {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}


class Case:
    """Hidden states [2, 7, H], a third of the labels ignored, heads whose predictions vary."""

    def __init__(self, *, bias: bool = False, **options: Any) -> None:
        random = torch.Generator().manual_seed(3)
        self.hidden = torch.randn(2, 7, HIDDEN, generator=random)
        self.weight = torch.randn(VOCAB, HIDDEN, generator=random) * 0.7
        self.bias = torch.randn(VOCAB, generator=random) if bias else None
        logits = F.linear(self.hidden, self.weight, self.bias)
        guess = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1, generator=random)
        self.labels = guess.reshape(2, 7)
        self.labels[0, :3], self.labels[1, 5:] = -100, -100
        self.uniform = torch.rand(2, 7, generator=random)
        torch.manual_seed(0)
        self.heads = AutoDecoHeads(AutoDecoConfig(hidden_size=HIDDEN, **options))
        with torch.no_grad():
            for parameter in self.heads.parameters():
                parameter *= 2

    def loss(self, lm_head: Tensor | nn.Module | None = None, **options: Any) -> Any:
        if lm_head is None:
            lm_head, options = self.weight, {"bias": self.bias} | options
        options = {"drop_uniform": self.uniform} | options
        return linear_autodeco_loss(self.hidden, lm_head, self.heads, self.labels, **options)

    def gradients(self, loss: Tensor, *others: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [*self.heads.parameters(), *others]))

    def expected(
        self,
        loss_of: Callable[[reference.AutoDecoLoss], Tensor] = lambda loss: loss.loss,
        transform: Callable[[Tensor], Tensor] = lambda logits: logits,
        **options: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """In float64 by autograd of the reference: the loss; its gradients for heads, hidden
        states, weight and bias."""
        leaves = [self.hidden, self.weight] + ([] if self.bias is None else [self.bias])
        leaves = [leaf.double().requires_grad_() for leaf in leaves]
        weights = {
            name: value.detach().double().requires_grad_()
            for name, value in self.heads.named_parameters()
        }
        logits = transform(F.linear(*leaves))
        predicted = reference.head_predictions(
            leaves[0], logits, weights, enhanced=self.heads.use_enhanced_features
        )
        options = {"drop_uniform": self.uniform} | options
        loss = loss_of(reference.autodeco_loss(logits, *predicted, self.labels, **options))
        return loss.detach(), list(torch.autograd.grad(loss, [*weights.values(), *leaves]))


def assert_all_close(got: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), **tolerance)


def module_of(case: Case) -> nn.Linear:
    lm_head = nn.Linear(HIDDEN, VOCAB, bias=case.bias is not None)
    lm_head.weight = nn.Parameter(case.weight)
    if case.bias is not None:
        lm_head.bias = nn.Parameter(case.bias)
    return lm_head

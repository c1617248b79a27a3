"""linear_autodeco_loss(hidden states, LM head, heads, labels), H = 1024, forward and backward.

The rows are tokens; the base is frozen, so that the gradients are those of the heads. The floor is
the LM head alone, in the chunks that ours takes: torch's matrix product.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

import autodeco_ext
from autodeco_ext import AutoDecoConfig, AutoDecoHeads, reference
from autodeco_ext._linear_loss_autograd import heads_bytes
from autodeco_ext.linear_loss import DEFAULT_CHUNK_BYTES
from bench.providers import Missing, Provider, linear_losses
from bench.rows import DTYPES

HIDDEN_SIZE = 1024
STANDARD_DEVIATIONS = {"gaussian": 1.0, "gaussian5": 5.0}  # of the logits
DISTRIBUTIONS = tuple(STANDARD_DEVIATIONS)
CHECKED_TOKENS = 32  # a float64 sort for all would take minutes
NO_RESULT = "a product of torch, its result is dropped"
_LIMITS = {"loss": 1e-5, "head_gradient": 1e-4}
_PEER_LIMITS = {"loss": 1e-3, "head_gradient": 1e-2}

Arguments = tuple[Tensor, Tensor, AutoDecoHeads, Tensor]


def inputs(
    distribution: str, count: int, rows: int, vocab: int, dtype: str, device: str
) -> tuple[list[Arguments], Arguments]:
    """(the arguments of every round, those that are checked: the first tokens).

    A token's hidden state is random but for a part along its label's row of the LM head, which
    gives the label a probability of about a half, as in a model that fits the data.
    """
    deviation = STANDARD_DEVIATIONS[distribution]
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    # With 0, at 4096 tokens, a hidden unit of a checked one is 4e-8, next to the kink of its ReLU:
    # float32 and float64 then differ by 2 % of the gradient.
    torch.manual_seed(1)
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=HIDDEN_SIZE)).to(device)
    weight = normal(vocab, HIDDEN_SIZE).mul_(deviation / HIDDEN_SIZE**0.5).to(DTYPES[dtype])
    label_logit = math.log(vocab) + deviation**2 / 2  # of the same size as all others together
    rounds = []
    for _ in range(count):
        labels = torch.randint(vocab, (rows,), generator=generator, device=device)
        of_labels = weight[labels].float()
        hidden = normal(rows, HIDDEN_SIZE)
        hidden += of_labels * (label_logit / of_labels.square().sum(-1, keepdim=True))
        rounds.append((hidden.to(weight.dtype), weight, heads, labels))
    hidden, *_, labels = rounds[0]
    return rounds, (hidden[:CHECKED_TOKENS], weight, heads, labels[:CHECKED_TOKENS])


def ours(*arguments: Tensor) -> Tensor:
    return autodeco_ext.linear_autodeco_loss(*arguments, easy_token_drop=0).loss


def _definition(hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor) -> Tensor:
    """In float64, from logits in the dtype of the LM head."""
    logits = F.linear(hidden, weight).double()
    parameters = dict(heads.named_parameters())
    t, p = reference.head_predictions(hidden.double(), logits, parameters)
    return reference.autodeco_loss(logits, t, p, labels).loss


def matmul_alone(hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, *_: object) -> None:
    """The LM head's product in the chunks that ours takes."""
    row_bytes = len(weight) * weight.element_size() + heads_bytes(heads)
    rows = max(1, DEFAULT_CHUNK_BYTES // row_bytes)
    for chunk in hidden.tensor_split(-(-len(hidden) // rows)):
        F.linear(chunk, weight)


def providers(device: str) -> dict[str, Provider | Missing]:
    return {
        "autodeco_ext": Provider(linear_losses.with_gradients(ours), errors=errors, waits=True),
        "floor": Provider(matmul_alone, unchecked=NO_RESULT),
        "released": Provider(
            linear_losses.with_gradients(linear_losses.released),
            is_near,
            errors=errors,
            refuses=linear_losses.refuses,
        ),
        "released chunked": Provider(linear_losses.released_chunked, is_near, errors=errors),
        "liger kernel": linear_losses.liger(device),
        "cut cross entropy": linear_losses.cut(device),
    }


def errors(result: linear_losses.Result, *arguments: Tensor) -> dict[str, float]:
    """Relative to the value in float64; of the gradients, the norm of the difference."""
    expected = linear_losses.with_gradients(_definition)(*arguments)
    return {
        name: float((found.double() - wanted.double()).norm() / wanted.double().norm())
        for name, found, wanted in zip(_LIMITS, result, expected, strict=True)
    }


def is_right(
    result: linear_losses.Result, *arguments: Tensor, limits: dict[str, float] = _LIMITS
) -> bool:
    found = errors(result, *arguments)
    return all(found[name] <= limit for name, limit in limits.items())


is_near = functools.partial(is_right, limits=_PEER_LIMITS)

"""One step of training the heads on a frozen base of 0.5 billion parameters, without its forward.

The LM head's product with the base's last hidden states, both heads, both losses, the gradients of
the heads and AdamW. The base has the sizes of Qwen2-0.5B and random weights, the tokens are one
sequence; its forward without the LM head is a provider of its own, and in no other's time. The
floor is the LM head alone, as beside linear_autodeco_loss.

A step begins with the same heads each time: they are copied and their optimizer is a new one, which
takes a millisecond, so that the step that is checked is the one that is timed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autodeco_ext import AutoDecoConfig, AutoDecoHeads
from bench.cases import linear_autodeco_loss as linear
from bench.providers import Missing, Provider, linear_losses
from bench.rows import DTYPES

SIZES = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
DISTRIBUTIONS = linear.DISTRIBUTIONS  # of the logits, about
_LABELS_AT_ONCE = 32  # tokens: more would need more memory than a step does

Arguments = tuple[Tensor, Tensor, AutoDecoHeads, Tensor, Callable[[], Tensor]]


def inputs(
    distribution: str, count: int, rows: int, vocab: int, dtype: str, device: str
) -> tuple[list[Arguments], Arguments]:
    """(the arguments of every round, those that are checked: the first tokens)."""
    base = _base(distribution, vocab, dtype, device)
    weight = base.get_input_embeddings().weight  # tied
    torch.manual_seed(1)
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=weight.shape[1])).to(device)
    rounds = []
    for _ in range(min(count, 2)):  # the LM head alone is larger than any cache
        forward = functools.partial(_forward, base, torch.randint(vocab, (1, rows), device=device))
        hidden = forward()
        rounds.append((hidden, weight, heads, _labels(hidden, weight), forward))
    hidden, _, _, labels, forward = rounds[0]
    first = slice(linear.CHECKED_TOKENS)
    return rounds, (hidden[first], weight, heads, labels[first], forward)


@functools.lru_cache(maxsize=1)  # it takes seconds to make
def _base(distribution: str, vocab: int, dtype: str, device: str) -> nn.Module:
    """Without an LM head, which is the tied embedding.

    A random base has logits of a standard deviation of 0.6. Its last norm, whose weights are ones,
    is scaled: those of a trained model are of that size too.
    """
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    with torch.device(device):
        base = Qwen2Model(Qwen2Config(vocab_size=vocab, **SIZES)).eval().requires_grad_(False)
    embedding = base.get_input_embeddings().weight
    deviation = linear.STANDARD_DEVIATIONS[distribution]
    base.norm.weight.fill_(deviation / (embedding.std() * embedding.shape[1] ** 0.5))
    return base.to(DTYPES[dtype])


@torch.no_grad()
def _forward(base: nn.Module, token_ids: Tensor) -> Tensor:
    return base(token_ids, use_cache=False).last_hidden_state[0]


def _labels(hidden: Tensor, weight: Tensor) -> Tensor:
    """Drawn from the base itself, as those of a model that fits the data."""
    return torch.cat(
        [
            F.linear(some, weight).float().softmax(-1).multinomial(1)[:, 0]
            for some in hidden.split(_LABELS_AT_ONCE)
        ]
    )


def _step(loss_and_gradients: Callable[..., linear_losses.Result]) -> Callable[..., object]:
    def step(
        hidden: Tensor, weight: Tensor, heads: AutoDecoHeads, labels: Tensor, _: object
    ) -> linear_losses.Result:
        heads = copy.deepcopy(heads)
        parameters = list(heads.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=3e-4)
        loss, gradients = loss_and_gradients(hidden, weight, heads, labels)
        of_each = gradients.split([one.numel() for one in parameters])
        for parameter, gradient in zip(parameters, of_each, strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        return loss, gradients

    return step


def providers(device: str) -> dict[str, Provider | Missing]:
    def released(run: Callable[..., linear_losses.Result], **options: object) -> Provider:
        is_near = functools.partial(is_right, judge=linear.is_near)
        return Provider(_step(run), is_near, errors=errors, waits=True, **options)

    return {
        "autodeco_ext": Provider(
            _step(linear_losses.with_gradients(linear.ours)), errors=errors, waits=True
        ),
        "floor": Provider(linear.matmul_alone, unchecked=linear.NO_RESULT),
        "base forward": Provider(lambda *arguments: arguments[-1](), _is_base, waits=True),
        "released": released(
            linear_losses.with_gradients(linear_losses.released), refuses=linear_losses.refuses
        ),
        "released chunked": released(linear_losses.released_chunked),
    }


def errors(result: linear_losses.Result, *arguments: object) -> dict[str, float]:
    return linear.errors(result, *arguments[:-1])


def is_right(
    result: linear_losses.Result, *arguments: object, judge: Callable[..., bool] = linear.is_right
) -> bool:
    return judge(result, *arguments[:-1])


def _is_base(result: Tensor, hidden: Tensor, *_: object) -> bool:
    return torch.equal(result[: len(hidden)], hidden)

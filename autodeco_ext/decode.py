"""decode_step: from the last hidden state and the logits to a token, heads included."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from autodeco_ext._arguments import errors_named, per_row, require_tensor
from autodeco_ext.ops import SampleOutput, sample

if TYPE_CHECKING:  # at run time it would import transformers, which takes seconds
    from autodeco_ext.models import AutoDecoHeads


class DecodeStep(NamedTuple):
    """What `decode_step` returns.

    Attributes:
        tokens: int64 `logits.shape[:-1]`; -1 in invalid rows.
        temperature: float32 of that shape; what the row was drawn with, predicted or given.
        top_p: the same.
        info: the `SampleOutput` of the draw with `return_info`, else None.
    """

    tokens: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor
    info: SampleOutput | None = None


def decode_step(
    hidden_states: torch.Tensor,
    logits: torch.Tensor,
    heads: AutoDecoHeads,
    *,
    temperature: float | torch.Tensor | None = None,
    top_p: float | torch.Tensor | None = None,
    top_k: int | torch.Tensor | None = None,
    min_p: float | torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    valid_vocab: int | torch.Tensor | None = None,
    return_info: bool = False,
    check: bool | None = None,
) -> DecodeStep:
    """Predicts temperature and top_p of every row with the heads, and draws a token with them.

    The same as `heads(hidden_states, logits)` and then `sample(logits, temperature, top_p, ...)`,
    without a gradient. With seeds given and both values predicted these are at most five
    operations: hidden states to float32 (none if they are), the product of either head's first
    weights with them, the rest of both heads with the features of the row, the draw. Without seeds
    one more draws them, and a temperature or top_p given as a number takes one more to return it as
    a tensor; a given top_p saves the product of its head. No operation reads a value on the host.

    Args:
        hidden_states: `[..., H]`, input of the LM head, any floating point dtype.
        logits: `[..., V]`, what the LM head made of them, unscaled; float32, bfloat16 or float16,
            vocabulary stride 1, 1 <= V <= 2^20.
        heads: AutoDecoHeads of that hidden size, on the device of the logits.
        temperature: draw with this instead of the predicted temperature; scalar, or tensor that
            broadcasts to `logits.shape[:-1]`, finite and >= 0. As in `generate`, the top-p head
            goes on reading the predicted one.
        top_p: draw with this instead of the predicted top_p, and the top-p head does not run; of
            the same shapes, >= 1 is off, <= 0 keeps one token.
        top_k, min_p, seed, offset, generator, return_info: as in `sample`.
        valid_vocab: as in `sample`; the heads read all columns, as they do in training.
        check: as in `sample`.

    Given both temperature and top_p, hidden states and heads are not read.

    Returns:
        DecodeStep(tokens, temperature, top_p, info).

    Raises:
        ValueError: a shape, device or value that does not fit, or an invalid row, named.
        TypeError: an argument of the wrong type.

    Determinism: as in `sample`, given the products of the heads' first weights with the hidden
    states, which are torch's and may depend on the batch by rounding.

    Example:
        >>> import torch, autodeco_ext
        >>> from autodeco_ext import AutoDecoConfig, AutoDecoHeads
        >>> heads = AutoDecoHeads(AutoDecoConfig(hidden_size=64))
        >>> logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        >>> step = autodeco_ext.decode_step(torch.zeros(2, 64), logits, heads, seed=0)
        >>> step.tokens, step.temperature.shape
        (tensor([0, 2]), torch.Size([2]))
    """
    from autodeco_ext.models.heads import require_heads  # whoever has heads has imported this

    require_tensor("decode_step", "logits", logits)
    require_heads("decode_step", heads)
    drawn_with = {"temperature": temperature, "top_p": top_p}
    predicted_names = [name for name, value in drawn_with.items() if value is None]
    with errors_named("decode_step", predicted=predicted_names):
        if predicted_names:
            predicted = heads.predict(hidden_states, logits, needs_top_p=top_p is None, check=check)
            drawn_with |= {name: getattr(predicted, name) for name in predicted_names}
        drawn = sample(
            logits,
            **drawn_with,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            offset=offset,
            generator=generator,
            valid_vocab=valid_vocab,
            return_info=return_info,
            check=check,
        )
    used = {name: _per_row(name, value, logits) for name, value in drawn_with.items()}
    if return_info:
        return DecodeStep(drawn.tokens, **used, info=drawn)
    return DecodeStep(drawn, **used)


def _per_row(name: str, value: float | torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return per_row("decode_step", name, value, torch.float32, logits)
    return torch.full(logits.shape[:-1], value, dtype=torch.float32, device=logits.device)

"""Arguments for autodeco_ext.autodeco_loss, and a judge of each result of each row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from loss_oracle import (
    RELEASED,
    ExactLoss,
    LossOptions,
    SortedRow,
    acceptable_soft_top_p_losses,
    error_share,
    exact_temperature_loss,
)
from oracle import generator, make_rows
from torch import Tensor

import autodeco_ext

IGNORE = -100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random_arguments(
    kind: str, rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, T, P, labels; half of the labels are likely tokens, half are any."""
    random = generator(seed)
    logits = make_rows(kind, rows, vocab, dtype, random)
    temperature = 0.05 + 1.95 * torch.rand(rows, generator=random)
    top_p = torch.rand(rows, generator=random)
    likely = torch.multinomial(logits.float().softmax(-1), 1, generator=random)[:, 0]
    anywhere = torch.randint(vocab, (rows,), generator=random)
    labels = torch.where(torch.arange(rows) % 2 == 0, likely, anywhere)
    return logits, temperature, top_p, labels


def of_each_label(row: Tensor, temperature: float, top_p: float):
    """One row as often as it has columns, each time with another label."""
    vocab = row.shape[-1]
    parameters = (torch.full((vocab,), value) for value in (temperature, top_p))
    return row.expand(vocab, vocab), *parameters, torch.arange(vocab)


class LossResults(NamedTuple):
    """Everything autodeco_loss computes for each row, before any reduction."""

    temperature_loss: Tensor  # [rows]
    top_p_loss: Tensor
    temperature_loss_d_temperature: Tensor
    top_p_loss_d_temperature: Tensor
    top_p_loss_d_top_p: Tensor
    temperature_loss_d_logits: Tensor | None  # [rows, vocab]
    top_p_loss_d_logits: Tensor | None


def keywords(options: LossOptions) -> dict[str, Any]:
    """The arguments of autodeco_loss that these options are."""
    named = options._asdict()
    variant = "megatron" if named.pop("megatron") else "released"
    cumulative = "exclusive" if named.pop("exclusive") else "inclusive"
    return {"variant": variant, "cumulative": cumulative, **named}


def run_losses(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    labels: Tensor,
    options: LossOptions = RELEASED,
    *,
    with_logits: bool = False,
    drop_uniform: Tensor | None = None,
    **named: Any,
) -> LossResults:
    """logits [rows, vocab] in any memory layout, the others [rows]. None drops no easy token.

    with_logits: and the gradient of the logits.
    """
    logits = logits.detach().requires_grad_(with_logits)
    temperature = temperature.detach().clone().requires_grad_()
    top_p = top_p.detach().clone().requires_grad_()
    if drop_uniform is None:
        named["easy_token_drop"] = 0.0
    result = autodeco_ext.autodeco_loss(
        logits,
        temperature,
        top_p,
        labels,
        drop_uniform=drop_uniform,
        reduction="none",
        **keywords(options),
        **named,
    )
    gradients = []
    for part in (result.temperature_loss, result.top_p_loss):
        inputs = (temperature, top_p, logits) if with_logits else (temperature, top_p)
        found = torch.autograd.grad(part.sum(), inputs, retain_graph=True, materialize_grads=True)
        gradients.append((*found, None)[:3])
    unrelated = (gradients[0][1] == 0) | result.temperature_loss.isnan()
    assert unrelated.all(), "the temperature loss must not depend on top_p"
    return LossResults(
        result.temperature_loss.detach(),
        result.top_p_loss.detach(),
        gradients[0][0],
        gradients[1][0],
        gradients[1][1],
        gradients[0][2],
        gradients[1][2],
    )


def is_dropped(row: SortedRow, label: int, drop_uniform: Tensor | None, drop: float) -> bool:
    """An easy token, the first of its row's order, drawn below the threshold (float32 both)."""
    return drop_uniform is not None and row.rank(label) == 0 and bool(drop_uniform < drop)


def worst_shares(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    labels: Tensor,
    got: LossResults,
    options: LossOptions = RELEASED,
    *,
    drop_uniform: Tensor | None = None,
    easy_token_drop: float = 0.6,
) -> Tensor:
    """The error of each result as a share of what is allowed, [rows, 7] in the order of got."""
    shares = torch.zeros(len(labels), len(got), dtype=torch.float64)
    one_row = SortedRow(logits[0]) if len(labels) and logits.stride(0) == 0 else None
    for i, label in enumerate(labels.tolist()):
        row = one_row or SortedRow(logits[i])
        arguments = (float(temperature[i]), label, options)
        nothing = [ExactLoss.zero(row.vocab)]
        of_temperature, of_top_p = nothing, nothing
        if label != IGNORE:
            drop = None if drop_uniform is None else drop_uniform[i]
            dropped = is_dropped(row, label, drop, easy_token_drop)
            if not dropped:
                of_temperature = [exact_temperature_loss(row, *arguments)]
            if not (dropped and options.megatron):
                of_top_p = acceptable_soft_top_p_losses(
                    row, arguments[0], float(top_p[i]), label, options
                )
        for column, (name, value) in enumerate(got._asdict().items()):
            if value is None:
                continue
            acceptable = of_top_p if name.startswith("top_p") else of_temperature
            part = name.removeprefix("temperature_").removeprefix("top_p_").removeprefix("loss_")
            share = error_share(value[i], part, acceptable, value.dtype)
            shares[i, column] = share.max()
    return shares


def assert_losses_exact(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    labels: Tensor,
    options: LossOptions = RELEASED,
    **named: Any,
) -> LossResults:
    """Runs the op and judges each result of each row; the failure names the worst one."""
    got = run_losses(logits, temperature, top_p, labels, options, **named)
    drops = {k: v for k, v in named.items() if k in ("drop_uniform", "easy_token_drop")}
    shares = worst_shares(logits, temperature, top_p, labels, got, options, **drops)
    if len(shares) and shares.max() > 1:
        i, column = divmod(int(shares.argmax()), len(got))
        name = got._fields[column]
        raise AssertionError(
            f"{name} of row {i} is off by {float(shares[i, column]):.3g} times what is allowed "
            f"(T {float(temperature[i])!r}, P {float(top_p[i])!r}, label {int(labels[i])}, "
            f"{logits.shape[-1]} columns of {logits.dtype}, {options}); "
            f"{int((shares > 1).any(1).sum())} of {len(labels)} rows are wrong"
        )
    return got

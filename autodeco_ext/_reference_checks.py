"""Argument checks of the reference: a sentence for every bad shape, dtype, value and row."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PerRow = float | Tensor  # one number, or a tensor that broadcasts to logits.shape[:-1]
PerRowInt = int | Tensor


def message(op: str, argument: str, requirement: str, got: object) -> str:
    return f"autodeco_ext.reference.{op}: {argument} {requirement}, got {got}"


class Rows(NamedTuple):
    """Checked arguments of the sampling functions, leading dimensions flattened."""

    logits: Tensor  # [rows, vocab], -inf for every token that cannot be drawn, +0.0 for -0.0
    temperature: Tensor  # [rows, 1], a float32 value, like top_p and min_p
    top_p: Tensor
    top_k: Tensor  # int64, 0 is off
    min_p: Tensor


# name -> (requirement, test of the converted values)
_RULES = {
    "temperature": ("must be finite and >= 0", lambda x: x.isfinite() & (x >= 0)),
    "top_p": ("must not be NaN", lambda x: ~x.isnan()),
    "top_k": ("must be >= 0", lambda x: x >= 0),
    "min_p": ("must not be NaN", lambda x: ~x.isnan()),
    "valid_vocab": ("must be >= 1", lambda x: x >= 1),
}


def _expand(op: str, name: str, value: Tensor, logits: Tensor) -> Tensor:
    """One value per row, [rows]."""
    if value.device != logits.device:
        raise ValueError(message(op, name, f"must be on {logits.device}", value.device))
    rows = list(logits.shape[:-1])
    try:
        return value.expand(rows).reshape(-1)
    except RuntimeError:
        got = list(value.shape)
        raise ValueError(message(op, name, f"must broadcast to {rows}", got)) from None


def _per_row(op: str, name: str, value: object, logits: Tensor) -> Tensor:
    """The parameter as float32 or int64 [rows]; a bad number raises here, a bad element later."""
    integer = name in ("top_k", "valid_vocab")
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(message(op, name, "must be a real tensor", value.dtype))
        if integer and value.is_floating_point():
            raise TypeError(message(op, name, "must be an integer tensor", value.dtype))
    elif isinstance(value, numbers.Integral if integer else numbers.Real):
        requirement, good = _RULES[name]
        # By way of float64: a number beyond float32 has to become inf, not an overflow error.
        wide = torch.tensor(value, dtype=torch.int64 if integer else torch.float64)
        converted = (wide if integer else wide.float()).to(logits.device)
        if not good(converted):
            raise ValueError(message(op, name, requirement, value))
        value = converted
    else:
        kind = "an int" if integer else "a number"
        raise TypeError(message(op, name, f"must be {kind} or a tensor", type(value).__name__))
    value = _expand(op, name, value, logits)
    return value.long() if integer else value.float()


# Argument, requirement, which values are good, values [rows].
RowCheck = tuple[str, str, Callable[[Tensor], Tensor], Tensor]


def check_logits(op: str, logits: object) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(message(op, "logits", "must be a floating point tensor", got))
    if logits.dim() == 0 or logits.shape[-1] == 0:
        got = list(logits.shape)
        raise ValueError(message(op, "logits", "must have shape [..., V] with V >= 1", got))


def logits_checks(logits: Tensor) -> list[RowCheck]:
    """Of logits [rows, V]."""
    largest = logits.detach().amax(-1)  # NaN if the row has one
    return [
        ("logits", "must not be NaN", lambda x: ~x.isnan(), largest),
        ("logits", "must not be +inf", lambda x: x != torch.inf, largest),
        ("logits", "must have a finite value", lambda x: x != -torch.inf, largest),
    ]


def raise_at_invalid_row(op: str, checks: list[RowCheck], looked_at: Tensor | None = None) -> None:
    """Names the first invalid row by the first check that it fails.

    looked_at: bool [rows]; the other rows may hold anything.
    """
    invalid = torch.stack([~good(values) for _, _, good, values in checks])  # [checks, rows]
    if looked_at is not None:
        invalid &= looked_at
    if invalid.any():
        row = int(invalid.any(0).nonzero()[0])
        name, requirement, _, values = checks[int(invalid[:, row].nonzero()[0])]
        raise ValueError(message(op, name, requirement, f"{values[row].item()} in row {row}"))


def check_rows(
    op: str,
    logits: Tensor,
    temperature: PerRow,
    top_p: PerRow = 1.0,
    top_k: PerRowInt | None = None,
    min_p: PerRow | None = None,
    valid_vocab: PerRowInt | None = None,
    dtype: torch.dtype = torch.float64,
) -> Rows:
    """Converts the arguments to ``dtype`` and names the first invalid row and why it is one."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        got = repr(dtype)
        raise TypeError(message(op, "dtype", "must be a floating point torch.dtype", got))
    check_logits(op, logits)
    vocab = logits.shape[-1]
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0 if top_k is None else top_k,
        "min_p": 0.0 if min_p is None else min_p,
        "valid_vocab": vocab if valid_vocab is None else valid_vocab,
    }
    per_row = {name: _per_row(op, name, value, logits) for name, value in given.items()}
    exists = torch.arange(vocab, device=logits.device) < per_row["valid_vocab"][:, None]
    flat = logits.reshape(-1, vocab).to(dtype).where(exists, -torch.inf) + 0.0

    checks = [(name, *_RULES[name], values) for name, values in per_row.items()]
    raise_at_invalid_row(op, checks + logits_checks(flat))
    floats = [per_row[name][:, None].to(dtype) for name in ("temperature", "top_p", "min_p")]
    return Rows(flat, floats[0], floats[1], per_row["top_k"][:, None], floats[2])


def as_int64(op: str, name: str, value: object, device: torch.device | None) -> Tensor:
    """An int or an int64 tensor as an int64 tensor."""
    if isinstance(value, Tensor):
        if value.dtype != torch.int64:
            raise TypeError(message(op, name, "must be an int or an int64 tensor", value.dtype))
        return value
    if not isinstance(value, numbers.Integral):
        got = type(value).__name__
        raise TypeError(message(op, name, "must be an int or an int64 tensor", got))
    wrapped = (int(value) + 2**63) % 2**64 - 2**63  # the int64 of the same bits modulo 2^64
    return torch.tensor(wrapped, device=device)


def row_keys(
    op: str, seed: PerRowInt, offset: PerRowInt | None, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """(seed, offset) of every row as given, int64 [rows]; two scalars make row r use offset + r."""
    seed = as_int64(op, "seed", seed, logits.device)
    offset = as_int64(op, "offset", 0 if offset is None else offset, logits.device)
    scalars = seed.dim() == 0 and offset.dim() == 0
    seed, offset = _expand(op, "seed", seed, logits), _expand(op, "offset", offset, logits)
    if scalars:
        offset = offset + torch.arange(len(offset), device=offset.device)
    return seed, offset

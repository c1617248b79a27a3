"""Sampling parameters as people pass them: checked once, spread over rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# name -> (whole number?, requirement in words, test of a float)
RULES = {
    "temperature": (
        False,
        "must be finite and >= 0",
        lambda value: math.isfinite(value) and value >= 0,
    ),
    "top_p": (False, "must be in [0, 1]", lambda value: 0 <= value <= 1),
    "top_k": (True, "must be >= 0", lambda value: value >= 0),
    "min_p": (False, "must be in [0, 1]", lambda value: 0 <= value <= 1),
}


@dataclass(frozen=True)
class SamplingParameters:
    """Scalars or per-row tensors; None means "not given" (top_k and min_p: off).

    The ranges are those of the Hugging Face warpers, except that temperature 0 is allowed (greedy).
    """

    temperature: float | torch.Tensor | None = None
    top_p: float | torch.Tensor | None = None
    top_k: int | torch.Tensor | None = None
    min_p: float | torch.Tensor | None = None

    def check(self, owner: str) -> SamplingParameters:
        """Return self, or raise naming the argument; owner starts the message."""
        for name, (whole, requirement, is_good) in RULES.items():
            value = getattr(self, name)
            if value is None:
                continue
            prefix = f"autodeco_ext.{owner}: {name}"
            kind = "a whole number" if whole else "a number"
            if isinstance(value, torch.Tensor):
                wrong_dtype = value.is_floating_point() if whole else False
                if value.dtype == torch.bool or value.is_complex() or wrong_dtype:
                    raise TypeError(
                        f"{prefix} must be {kind} or a tensor of them, got {value.dtype}"
                    )
                if value.dim() > 1:
                    raise ValueError(f"{prefix} must have shape [rows], got {list(value.shape)}")
                # Once per processor or generate call, never per token, so reading values is cheap.
                for row, entry in enumerate(value.reshape(-1).tolist()):
                    if not is_good(entry):
                        raise ValueError(f"{prefix} {requirement}, got {entry} in row {row}")
            elif isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                raise TypeError(f"{prefix} must be {kind} or a tensor of them, got {value!r}")
            elif not is_good(value):
                raise ValueError(f"{prefix} {requirement}, got {value}")
        return self

    def settings(self) -> tuple:
        """Return the four values in the order sample and filter_logits take them."""
        return self.temperature, self.top_p, self.top_k, self.min_p

    def for_rows(self, rows: int, device: torch.device, owner: str) -> SamplingParameters:
        """The same parameters with every tensor of shape [rows] on the device."""
        spread = {
            name: spread_rows(getattr(self, name), rows, device, f"autodeco_ext.{owner}: {name}")
            for name in RULES
        }
        return SamplingParameters(**spread)


def spread_rows(
    value: float | int | torch.Tensor | None, rows: int, device: torch.device, prefix: str
) -> float | int | torch.Tensor | None:
    """Scalars unchanged; a tensor [n] becomes [rows] by repeating each entry rows / n times.

    generate lays out num_return_sequences (and beams) the same way: the copies of a prompt are
    neighbours.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() == 0:
        return value.to(device)
    given = value.shape[0]
    if given == 0 or rows % given != 0:
        raise ValueError(
            f"{prefix} must have one entry per row ({rows}) or per prompt, got {given}"
        )
    return value.to(device).repeat_interleave(rows // given)


def check_seed(seed: int | torch.Tensor | None, owner: str) -> None:
    """Raise unless seed is None, an int in the int64 range or an int64 tensor [rows]."""
    prefix = f"autodeco_ext.{owner}: seed"
    if isinstance(seed, torch.Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"{prefix} must be an int or an int64 tensor, got {seed.dtype}")
        if seed.dim() > 1:
            raise ValueError(f"{prefix} must have shape [rows], got {list(seed.shape)}")
    elif seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise TypeError(f"{prefix} must be an int or an int64 tensor, got {seed!r}")
        if not INT64_MIN <= seed <= INT64_MAX:
            raise ValueError(f"{prefix} must fit in int64, got {seed}")


def seeds_for_rows(
    seed: int | torch.Tensor, rows: int, device: torch.device, owner: str
) -> torch.Tensor:
    """One int64 seed per row: s, s + 1, ... (wrapping) from a scalar, or the tensor."""
    if isinstance(seed, torch.Tensor) and seed.dim() == 1:
        if seed.shape[0] != rows:
            raise ValueError(
                f"autodeco_ext.{owner}: seed must have one entry per sequence ({rows}), got"
                f" {len(seed)}"
            )
        return seed.to(device)
    return torch.as_tensor(seed, dtype=torch.int64, device=device) + torch.arange(
        rows, device=device
    )

"""One case: logits of a shape and a distribution, every provider checked, those that pass timed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from bench import cases
from bench.cases import kept_bounds
from bench.providers import Missing, Provider
from bench.rows import DTYPES, batches, parameters
from bench.timing import time_together

OK = "ok"
FAIL = "FAIL"


class Shape(NamedTuple):
    """What is measured, apart from who computes it."""

    op: str
    distribution: str
    rows: int
    vocab: int
    dtype: str

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.vocab * DTYPES[self.dtype].itemsize


class Inputs(NamedTuple):
    logits: torch.Tensor  # [count, rows, vocab]
    temperature: torch.Tensor  # [rows]
    top_p: torch.Tensor  # [rows]

    def call(self, provider: Provider, number: int) -> Any:
        logits = self.logits[number % len(self.logits)]
        return provider.run(logits, self.temperature, self.top_p)


def make_inputs(shape: Shape, count: int, device: str) -> Inputs:
    kept_bounds.forget()
    dtype = DTYPES[shape.dtype]
    logits = batches(shape.distribution, count, shape.rows, shape.vocab, dtype, device)
    return Inputs(logits, *parameters(shape.rows, device))


def verdict(op: str, provider: Provider, inputs: Inputs) -> str:
    """OK, FAIL, «ERROR: ...» or «not checked: ...»."""
    try:
        result = inputs.call(provider, 0)
        if provider.unchecked:
            return f"not checked: {provider.unchecked}"
        is_right = provider.is_right or cases.case(op).is_right
        return OK if is_right(result, inputs.logits[0], *inputs[1:]) else FAIL
    except Exception as error:  # a peer's fault is a line of the table, not the end of the run
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"ERROR: {type(error).__name__}: {first_line[:200]}"


def may_be_timed(check: str) -> bool:
    return check == OK or check.startswith("not checked")


def run_on_cpu(shape: Shape, seconds: float) -> Iterator[dict]:
    """One record per provider; one that fails its check has no time."""
    # Rounds rotate over at least this much, more than the last-level cache of most machines.
    count = max(2, math.ceil(64 * 2**20 / shape.logits_bytes))
    inputs = make_inputs(shape, count, "cpu")
    providers = cases.case(shape.op).providers("cpu")
    checks = {
        name: provider.reason
        if isinstance(provider, Missing)
        else verdict(shape.op, provider, inputs)
        for name, provider in providers.items()
    }
    timings = time_together(
        {
            name: lambda number, provider=provider: inputs.call(provider, number)
            for name, provider in providers.items()
            if isinstance(provider, Provider) and may_be_timed(checks[name])
        },
        seconds,
    )
    for name, check in checks.items():
        record = {**shape._asdict(), "provider": name, "check": check}
        if name in timings:
            record["microseconds"] = timings[name]._asdict()
        yield record

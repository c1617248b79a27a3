"""One case: logits of a shape and a distribution, every provider checked, those that pass timed."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch

from bench import cases
from bench.cases import kept_bounds
from bench.memory import extra_bytes
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
    """What providers are called with: the arguments of every round, none like another."""

    rounds: list[tuple[Any, ...]]
    checked: tuple[Any, ...]  # what is judged; those of the first round, or fewer of its rows

    def call(self, provider: Provider, number: int) -> Any:
        return provider.run(*self.rounds[number % len(self.rounds)])


@functools.lru_cache(maxsize=1)  # the ops of a shape follow each other
def _logits(
    distribution: str, count: int, rows: int, vocab: int, dtype: str, device: str
) -> torch.Tensor:
    kept_bounds.forget()
    return batches(distribution, count, rows, vocab, DTYPES[dtype], device)


def make_inputs(shape: Shape, count: int, device: str) -> Inputs:
    op, distribution, rows, vocab, dtype = shape
    make = getattr(cases.case(op), "inputs", None)
    if make is not None:
        return Inputs(*make(distribution, count, rows, vocab, dtype, device))
    logits = _logits(distribution, count, rows, vocab, dtype, device)
    each = zip(logits, *parameters(distribution, count, rows, device), strict=True)
    rounds = [cases.arguments(op, *batch) for batch in each]
    return Inputs(rounds, rounds[0])


def verdict(op: str, provider: Provider, inputs: Inputs) -> str:
    """OK, FAIL, «ERROR: ...», «not checked: ...», or why the provider cannot run."""
    reason = provider.refuses(*inputs.rounds[0]) if provider.refuses else ""
    if reason:
        return reason
    try:
        result = provider.run(*inputs.checked)
        if provider.unchecked:
            return f"not checked: {provider.unchecked}"
        is_right = provider.is_right or cases.case(op).is_right
        return OK if is_right(result, *inputs.checked) else FAIL
    except Exception as error:  # a peer's fault is a line of the table, not the end of the run
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"ERROR: {type(error).__name__}: {first_line[:200]}"


def may_be_timed(check: str) -> bool:
    return check == OK or check.startswith("not checked")


def beside_the_times(provider: Provider | Missing, check: str, inputs: Inputs) -> dict:
    """What a record has of its provider, whatever it was timed with: errors, kept, package."""
    if isinstance(provider, Missing):
        return {}
    result: dict[str, Any] = {}
    # Also of a wrong one: by how much it is wrong.
    if check in (OK, FAIL) and provider.errors is not None:
        result["errors"] = provider.errors(provider.run(*inputs.checked), *inputs.checked)
    if check == OK and provider.kept_tokens is not None:
        kept = [provider.kept_tokens(*arguments) for arguments in inputs.rounds]
        result["kept_tokens"] = sum(kept) / len(kept)
    if provider.package:
        result["package"] = provider.package
    return result


def run_on_cpu(shape: Shape, seconds: float, names: Collection[str] = ()) -> Iterator[dict]:
    """One record per provider (of those named); one that fails its check has no time."""
    # Rounds rotate over at least this much: more than 32 MiB of last-level cache, the one of the
    # recorded results; a server may have more.
    count = max(2, math.ceil(64 * 2**20 / shape.logits_bytes))
    inputs = make_inputs(shape, count, "cpu")
    providers = {
        name: provider
        for name, provider in cases.case(shape.op).providers("cpu").items()
        if not names or name in names
    }
    checks = {
        name: provider.reason
        if isinstance(provider, Missing)
        else verdict(shape.op, provider, inputs)
        for name, provider in providers.items()
    }
    timed = [name for name, check in checks.items() if may_be_timed(check)]
    # Batches as far apart as can be: none finds in the cache what another has just read.
    first = {name: place * count // len(timed) for place, name in enumerate(timed)}
    timings = time_together(
        {
            name: lambda number, name=name: inputs.call(providers[name], first[name] + number)
            for name in timed
        },
        seconds,
    )
    for name, check in checks.items():
        record = {**shape._asdict(), "provider": name, "check": check}
        provider = providers[name]
        if name in timings:
            record["microseconds"] = timings[name]._asdict()
            memory = extra_bytes(functools.partial(inputs.call, provider))
            if memory is not None:
                record["extra_bytes"] = memory
        yield {**record, **beside_the_times(provider, check, inputs)}

"""Times functions side by side, so that a drift of the machine's speed hits all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Microseconds of one call."""

    median: float
    percentile_20: float
    percentile_80: float


def percentiles(microseconds: list[float]) -> Timing:
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return Timing(*torch.tensor(microseconds, dtype=torch.float64).quantile(quantiles).tolist())


def time_together(
    functions: dict[str, Callable[[int], object]],
    seconds: float,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Calls the functions round by round, with its number, until `seconds` have passed for each.

    Every round has another order: what a function leaves in the caches costs the next one time.

    Args:
        functions: name -> function of the round, which picks its input so that rounds differ.
        seconds: time to spend on each function; at least five rounds are made, or as many as fit
            into half a minute.
        before: called before every timed call, and not timed.
    """
    spent = dict.fromkeys(functions, 0.0)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function(0)
    round_number = 0
    order = random.Random(0)
    while True:
        waiting = [
            name
            for name in functions
            if spent[name] < seconds or (len(samples[name]) < 5 and spent[name] < 30)
        ]
        if not waiting:
            break
        round_number += 1
        order.shuffle(waiting)
        for name in waiting:
            before()
            start = time.perf_counter()
            functions[name](round_number)
            elapsed = time.perf_counter() - start
            spent[name] += elapsed
            samples[name].append(elapsed * 1e6)
    return {name: percentiles(values) for name, values in samples.items()}

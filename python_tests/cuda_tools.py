"""CUDA graphs, waiting and memory: what several tests of the GPU look at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# About a tenth of a second: long beside the host's part of any call.
SLEEP_CYCLES = 200_000_000


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of what an op returned, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return [tensor for value in result for tensor in tensors_of(value)]
    return []


def assert_same(got: Any, expected: Any) -> None:
    for a, b in zip(tensors_of(got), tensors_of(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the call, and the result that every replay writes to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # libraries start, kernels are loaded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@contextlib.contextmanager
def torch_may_not_wait() -> Iterator[None]:
    """What torch itself waits for raises; an op of ours that waits is not seen by this."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits_for_the_device(call: Callable[[], Any]) -> bool:
    """Whether the call returns only after the work that was queued before it."""
    call()  # kernels are loaded, memory is cached
    torch.cuda.synchronize()
    queued = torch.cuda.Event()
    torch.cuda._sleep(SLEEP_CYCLES)
    queued.record()
    call()
    waited = queued.query()
    torch.cuda.synchronize()
    return waited


def extra_bytes(call: Callable[[], Any]) -> int:
    """The most memory the call held at once, beyond what it returned.

    Counts what was requested: what the allocator gives may be rounded up by as much as the limit.
    """
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    result = call()
    torch.cuda.synchronize()
    returned = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(result))
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before - returned

"""Times on CUDA: events around eager calls and around the replay of a CUDA graph, caches cold."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.timing import Timing, percentiles

_MIN_SAMPLES = 7


class CudaTimer:
    """Times calls that each read another batch, with the second-level cache emptied before."""

    def __init__(self, seconds: float) -> None:
        cache_bytes = torch.cuda.get_device_properties().L2_cache_size
        # Reading leaves nothing to write back, unlike a fill.
        self._other_data = torch.zeros(cache_bytes, dtype=torch.float32, device="cuda")
        self._seconds = seconds

    def calls(self, call: Callable[[int], object], count: int) -> Timing:
        """Microseconds of one of `count` eager calls in a row: device or host, the longer."""

        def run() -> None:
            torch.cuda.synchronize()  # nothing of the host's work hides behind the flush
            start.record()
            for number in range(count):
                call(number)
            end.record()

        start, end = _event(), _event()
        return self._sample(run, start, end, count)

    def graph(self, call: Callable[[int], object], count: int) -> Timing:
        """Microseconds of one of `count` calls inside one CUDA graph: the device alone."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(0)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(count):
                call(number)

        def run() -> None:
            start.record()
            graph.replay()
            end.record()

        start, end = _event(), _event()
        return self._sample(run, start, end, count)

    def _sample(
        self,
        run: Callable[[], None],
        start: torch.cuda.Event,
        end: torch.cuda.Event,
        count: int,
    ) -> Timing:
        samples: list[float] = []
        while len(samples) < _MIN_SAMPLES or sum(samples) * count < self._seconds * 1e6:
            self._other_data.sum()
            run()
            end.synchronize()
            samples.append(1e3 * start.elapsed_time(end) / count)
            if len(samples) >= 200:
                break
        return percentiles(samples)


def extra_bytes(call: Callable[[int], object]) -> int:
    """Most memory a call holds besides what was there, its result included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)

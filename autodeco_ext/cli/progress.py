"""Progress bars for whatever takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_TICK_SECONDS = 1.0
_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; the value is called with the number of units that are done since the
    last call.

    Where stderr is not a terminal (a log file), a line is written at the beginning, at most one
    every 30 seconds, and one at the end.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=description, unit=f" {unit}", file=sys.stderr) as bar:
            yield bar.update
        return
    started = said = time.perf_counter()
    done = 0

    def report() -> None:
        nonlocal said
        said = time.perf_counter()
        say(f"{description}: {done} of {total} {unit}s in {said - started:.1f} s")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done < total and time.perf_counter() - said >= _SECONDS_BETWEEN_LINES:
            report()

    say(f"{description} ...")
    yield advance
    report()


@contextmanager
def step(description: str) -> Iterator[None]:
    """Announce work without a known length, and say how long it took.

    On a terminal the seconds are counted while it lasts; a log file gets one line before and one
    after.
    """
    started = time.perf_counter()
    if not sys.stderr.isatty():
        say(f"{description} ...")
        yield
        say(f"{description}: {time.perf_counter() - started:.1f} s")
        return
    finished = threading.Event()
    counter = threading.Thread(
        target=_count_seconds, args=(description, started, finished), daemon=True
    )
    counter.start()
    try:
        yield
    except BaseException:
        finished.set()
        counter.join()
        say("")  # what went wrong is told on a line of its own
        raise
    finished.set()
    counter.join()
    # The padding covers what the counter may have written last.
    say(f"\r{description}: {time.perf_counter() - started:.1f} s".ljust(len(description) + 20))


def _count_seconds(description: str, started: float, finished: threading.Event) -> None:
    while True:
        seconds = time.perf_counter() - started
        print(f"\r{description} ... {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        if finished.wait(_TICK_SECONDS):
            return


def say(text: str) -> None:
    """Print to stderr, where progress goes; stdout is for results."""
    print(text, file=sys.stderr, flush=True)

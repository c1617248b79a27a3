"""Progress bars for whatever takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; the value is called with the number of units that are done since the
    last call.

    Where stderr is not a terminal (a log file), one line is written when the work is finished.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=description, unit=f" {unit}", file=sys.stderr) as bar:
            yield bar.update
        return
    started, done = time.perf_counter(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count

    say(f"{description} ...")
    yield advance
    say(f"{description}: {done} of {total} {unit}s in {time.perf_counter() - started:.1f} s")


@contextmanager
def step(description: str) -> Iterator[None]:
    """Announce work without a known length, and say how long it took."""
    started = time.perf_counter()
    say(f"{description} ...")
    yield
    say(f"{description}: {time.perf_counter() - started:.1f} s")


def say(text: str) -> None:
    """Print to stderr, where progress goes; stdout is for results."""
    print(text, file=sys.stderr, flush=True)

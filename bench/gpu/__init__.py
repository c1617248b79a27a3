"""Build, test, sanitize and measure on a machine with an NVIDIA GPU, in this order:

python -m bench gpu build       for this GPU's architecture, in place; prints the kernels' resources
python -m bench gpu test        the whole test suite, which must find the backend `cuda`
python -m bench gpu sanitize    compute-sanitizer: memcheck, racecheck, synccheck, initcheck
python -m bench gpu bench       every op against its peers: JSON, charts and a table

Needed: torch with CUDA, nvcc, cmake, ninja, pybind11, transformers, pytest, hypothesis, matplotlib;
no network. Each stage stops by itself when --minutes (8) are over and says what is left: type the
same command again, it goes on where it stopped. What has begun is ended then, but for a provider of
`bench`, which is timed to its end. Peers come from `python bench/fetch_peers.py`
(with --python X.Y on another machine, then copy bench/peers). Results go to --output
(bench/results/gpu-NAME).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

STAGES = ("build", "test", "sanitize", "bench")
ROOT = Path(__file__).resolve().parent.parent.parent


class Deadline(NamedTuple):
    """When a stage should have stopped."""

    at: float  # of time.monotonic()

    def left(self) -> float:
        """Seconds."""
        return self.at - time.monotonic()


def stage_parser(stage: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every stage has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench gpu {stage}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, help="folder for results (default: bench/results/gpu-NAME)"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="stop cleanly after this long (default: 8)"
    )
    return parser


def start(options: argparse.Namespace) -> tuple[Path, Deadline]:
    """The folder of results, made, and when to stop."""
    from bench.machine import gpu_folder_name  # imports the extension, which build makes

    output = options.output or ROOT / "bench" / "results" / gpu_folder_name()
    output.mkdir(parents=True, exist_ok=True)
    return output, Deadline(time.monotonic() + 60 * options.minutes)


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that a stage ends the processes it has started.

    Those have sessions of their own (`tools.run_logged`): a signal to this one does not reach them.
    """

    def leave(number: int, _: FrameType | None) -> None:
        # `timeout` sends its signal twice; the second must not cut the ending short.
        for handled in before:
            signal.signal(handled, signal.SIG_IGN)
        raise SystemExit(128 + number)

    wanted = (signal.SIGTERM, signal.SIGHUP)
    # What is ignored stays so: that is how nohup keeps a run alive.
    before = {
        number: signal.signal(number, leave)
        for number in wanted
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    stage, *rest = arguments
    if stage not in STAGES:
        print(
            f"bench gpu: the stage must be one of {', '.join(STAGES)}, got {stage!r}",
            file=sys.stderr,
        )
        return 2
    module = importlib.import_module(f"bench.gpu.{stage}")
    options = module.parser().parse_args(rest)
    if not torch.cuda.is_available():
        print(
            f"bench gpu {stage}: needs a CUDA GPU that torch can use, and torch "
            f"{torch.__version__} finds none",
            file=sys.stderr,
        )
        return 2
    with _signals_as_exit():
        return module.run(options)

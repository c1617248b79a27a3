"""Every result, table and chart of a CPU that bench/results holds.

python -m bench full                            # into bench/results
python -m bench full --only cpu --output /tmp   # one part; charts of those that are there
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

_VOCABS = "--vocab 32000 128256 151936 201088 262144"
_OURS = "--provider autodeco_ext floor --seconds 0.1"
_SAMPLING = "--op sample filter_logits distribution_stats kept_indices decode_step"
_LOSS = "--op autodeco_loss"
# Name of the result -> options of `python -m bench cpu`. Peers are slow, and so they are timed
# where a goal or a chart needs them; our own time is taken for every shape.
PARTS = {
    "cpu": f"{_SAMPLING} --rows 1 8 64 --seconds 0.5",
    "cpu-vocabularies": f"{_SAMPLING} --rows 8 {_VOCABS} --distribution peaked --seconds 0.5",
    "cpu-grid": f"{_SAMPLING} {_OURS} --rows 1 8 64 {_VOCABS} --dtype float32 bfloat16",
    "cpu-2-threads": f"{_SAMPLING} {_OURS} --rows 1 8 64 --threads 2",
    "cpu-loss": f"{_LOSS} --rows 1 8 --dtype float32 bfloat16 --seconds 0.5",
    "cpu-loss-grid": f"{_LOSS} {_OURS} --rows 1 8 64 {_VOCABS}",
    "cpu-linear-loss": "--op linear_autodeco_loss --rows 64 512 4096 --distribution gaussian5",
}
# Results -> the charts that are drawn of them.
CHARTS = {
    ("cpu",): "rows memory speed-up floor",
    ("cpu-vocabularies",): "latency",
    ("cpu-grid",): "dtypes",
    ("cpu", "cpu-2-threads"): "threads",
    ("cpu-loss",): "speed-up memory floor",
    ("cpu-loss-grid",): "latency",
    ("cpu-linear-loss",): "rows memory",
}


def _bench(*arguments: str) -> bool:
    """Whether `python -m bench` with these arguments succeeded; a process of its own."""
    print(f"\n$ python -m bench {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], check=False)
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench full",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder")
    options = parser.parse_args(arguments)
    paths = {name: options.output / f"{name}.json" for name in PARTS}
    succeeded = True
    for name in options.only:
        succeeded &= _bench("cpu", *PARTS[name].split(), "--output", str(paths[name]))
    for names, charts in CHARTS.items():
        results = [paths[name] for name in names]
        if set(names) & set(options.only) and all(path.is_file() for path in results):
            succeeded &= _bench("plot", *map(str, results), "--chart", *charts.split())
    return 0 if succeeded else 1

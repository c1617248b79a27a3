"""Every result, table and chart of a CPU that bench/results holds.

python -m bench full                            # into bench/results
python -m bench full --only cpu --output /tmp   # one part; charts of those that are there
python -m bench full --no-runs                  # the charts and tables of the results alone, anew

A part is a process and a result file of its own; each begins with the names of those still to come,
which is what --only takes to go on after an interruption, and with the cases it covers.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from bench.rows import FIXED_PARAMETERS

_VOCABS = "--vocab 32000 128256 151936 201088 262144"
_OURS = "--provider autodeco_ext floor --seconds 0.1"
_NUCLEUS = "--op sample filter_logits distribution_stats kept_indices"
_SAMPLING = f"{_NUCLEUS} decode_step"
_LOSS = "--op autodeco_loss"
_LINEAR = "--distribution gaussian5 --op"
_BOTH = "--dtype float32 bfloat16"
_ALL = "--dtype float32 bfloat16 float16"
_RELEASED = "--provider autodeco_ext floor released --seconds 0.3"
_HOT = f"--distribution {' '.join(FIXED_PARAMETERS)} --provider autodeco_ext floor 'hugging face'"
_THREADS = f"cpu {_SAMPLING} {_OURS} --rows 1 8 64 --distribution peaked --threads"
# Name of the result -> arguments of `python -m bench`. Peers are slow, and so they are timed where
# a goal or a chart needs them; our own time is taken for more shapes. A part takes at most three
# minutes on two cores, or it is to be divided.
PARTS = {
    "calls": "calls",
    "cpu": f"cpu {_SAMPLING} --rows 8 --seconds 0.5",
    "cpu-1-row": f"cpu {_SAMPLING} --rows 1 --seconds 0.5",
    "cpu-rows": f"cpu {_SAMPLING} --rows 1 8 64 --distribution peaked --seconds 0.3",
    "cpu-vocabularies": f"cpu {_SAMPLING} --rows 8 {_VOCABS} --distribution peaked --seconds 0.3",
    "cpu-dtypes": f"cpu {_SAMPLING} --rows 8 --distribution peaked {_ALL} --seconds 0.3",
    "cpu-1-thread": f"{_THREADS} 1",
    "cpu-2-threads": f"{_THREADS} 2",
    "cpu-hot": f"cpu --op sample --rows 8 {_HOT} --seconds 0.5",
    "cpu-mixed": "cpu --op mixed_sample --rows 8 64 --seconds 1",
    "cpu-loss": f"cpu {_LOSS} --rows 1 8 --seconds 0.5",
    "cpu-loss-64": f"cpu {_LOSS} --rows 64 {_RELEASED}",
    "cpu-loss-dtypes": f"cpu {_LOSS} --rows 8 --vocab 32000 151936 262144 {_ALL} {_RELEASED}",
    "cpu-linear-loss": f"cpu {_LINEAR} linear_autodeco_loss --rows 16 64 256",
    "cpu-linear-loss-4096": f"cpu {_LINEAR} linear_autodeco_loss {_OURS} --rows 4096",
    "cpu-linear-loss-dtypes": "cpu --op linear_autodeco_loss --rows 16 --vocab 32000 151936 "
    f"{_ALL} {_RELEASED}",
    "cpu-head-training": f"cpu {_LINEAR} head_training_step --rows 256",
    "cpu-grid": f"cpu {_NUCLEUS} {_OURS} --rows 8 {_VOCABS} {_ALL}",
    "cpu-batches": f"cpu {_NUCLEUS} autodeco_loss {_OURS} --rows 1 64 {_BOTH}",
}
# Results -> the charts that are drawn of them.
CHARTS = {
    ("cpu",): "speed-up",
    ("cpu-1-row",): "speed-up",
    ("cpu-rows",): "rows memory",
    ("cpu-vocabularies",): "latency",
    ("cpu-dtypes",): "speed-up",
    ("cpu-1-thread", "cpu-2-threads"): "threads",
    ("cpu-hot",): "parameters",
    ("cpu-mixed",): "speed-up",
    ("cpu-loss",): "speed-up memory floor",
    ("cpu-loss-64",): "speed-up",
    ("cpu-loss-dtypes",): "latency speed-up dtypes",
    ("cpu-linear-loss",): "rows memory speed-up",
    ("cpu-linear-loss-4096",): "rows",  # of which there is one: the table alone
    ("cpu-linear-loss-dtypes",): "dtypes",
    ("cpu-head-training",): "speed-up",
    ("cpu-grid",): "latency dtypes",
    ("cpu-batches",): "floor dtypes",
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
        epilog="parts, and what each gives to python -m bench:\n"
        + "\n".join(f"  {name}: {command}" for name, command in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="some parts"
    )
    parser.add_argument(
        "--no-runs", action="store_true", help="only draw and tabulate the results in the folder"
    )
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder")
    options = parser.parse_args(arguments)
    paths = {name: options.output / f"{name}.json" for name in PARTS}
    succeeded = True
    start = time.monotonic()
    for number, name in enumerate([] if options.no_runs else options.only, start=1):
        left = " ".join(options.only[number - 1 :])
        minutes = (time.monotonic() - start) / 60
        print(f"\npart {number} of {len(options.only)}, {minutes:.1f} minutes so far: {left}")
        succeeded &= _bench(*shlex.split(PARTS[name]), "--output", str(paths[name]))
    for names, charts in CHARTS.items():
        results = [paths[name] for name in names]
        if set(names) & set(options.only) and all(path.is_file() for path in results):
            succeeded &= _bench("plot", *map(str, results), "--chart", *charts.split())
    return 0 if succeeded else 1

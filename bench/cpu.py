"""Times every op on the CPU against its peers, each checked before it is timed.

python -m bench cpu                                   # one row and eight, V = 151936, float32
python -m bench cpu --op sample --rows 1 --vocab 32000 --dtype bfloat16 --output result.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path

import torch

from bench import cases
from bench.machine import machine
from bench.options import add_case_options, coverage, require_cases, shapes
from bench.rows import GOAL_VOCAB
from bench.runner import run_on_cpu
from bench.summary import failed, line, with_ratios


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m bench cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_case_options(result, rows=[1, 8], vocab=[GOAL_VOCAB], dtype=["float32"])
    result.add_argument(
        "--provider", nargs="+", default=(), metavar="NAME", help="only these (default: all)"
    )
    result.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    result.add_argument(
        "--seconds", type=float, default=1.0, help="per provider and case (default: 1)"
    )
    result.add_argument("--output", type=Path, help="write the records to this JSON file")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    wanted = shapes(parser(), options)
    require_cases(parser(), options, wanted)
    if options.threads < 1:
        parser().error("--threads must be positive")
    known = {name for op in options.op for name in cases.case(op).providers("cpu")}
    unknown = [name for name in options.provider if name not in known]
    if unknown:
        parser().error(f"--provider must be of {', '.join(sorted(known))}; got {unknown[0]!r}")
    torch.set_num_threads(options.threads)
    command = shlex.join(["python", "-m", "bench", "cpu", *arguments])
    result: dict = {"command": command, "machine": machine(), "records": []}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(coverage(wanted), flush=True)
    start = time.monotonic()
    for number, shape in enumerate(wanted, start=1):
        records = with_ratios(list(run_on_cpu(shape, options.seconds, options.provider)))
        result["records"] += records
        print("\n".join(map(line, records)))
        print(f"case {number} of {len(wanted)}, {time.monotonic() - start:.0f} s", flush=True)
    if options.output:
        result["records"].sort(key=lambda record: cases.NAMES.index(record["op"]))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed(result["records"]) else 0

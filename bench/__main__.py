"""Times every op against pure-torch providers, each checked before it is timed.

python -m bench                                   # one row and eight, V = 151936, float32
python -m bench --op sample --rows 1 --vocab 32000 --dtype bfloat16 --output result.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import torch

from bench.cases import distribution_stats, filter_logits, sample
from bench.machine import machine
from bench.rows import DISTRIBUTIONS, batches, parameters
from bench.timing import time_together

CASES: dict[str, ModuleType] = {
    "sample": sample,
    "filter_logits": filter_logits,
    "distribution_stats": distribution_stats,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run_case(
    op: str, distribution: str, rows: int, vocab: int, dtype: str, seconds: float
) -> list[dict]:
    """One record per provider; a provider that fails its check gets "FAIL" and no time."""
    case = CASES[op]
    logits = batches(distribution, rows, vocab, DTYPES[dtype])
    temperature, top_p = parameters(rows)
    right = {}
    for name, provider in case.PROVIDERS.items():
        result = provider(logits[0], temperature, top_p)
        right[name] = name in case.UNCHECKED or case.is_right(result, logits[0], temperature, top_p)
    timings = time_together(
        {
            name: lambda number, call=provider: call(
                logits[number % len(logits)], temperature, top_p
            )
            for name, provider in case.PROVIDERS.items()
            if right[name]
        },
        seconds,
    )
    shape = {
        "op": op,
        "distribution": distribution,
        "rows": rows,
        "vocab": vocab,
        "dtype": dtype,
    }
    ours = timings.get("autodeco_ext")
    records = []
    for name in case.PROVIDERS:
        record = {**shape, "provider": name, "check": "ok" if right[name] else "FAIL"}
        if name in case.UNCHECKED:
            record["check"] = "not checked"
        if right[name]:
            timing = timings[name]
            record["microseconds"] = timing._asdict()
            record["ns_per_element"] = 1e3 * timing.median / (rows * vocab)
            if ours is not None:
                record["ratio_to_autodeco_ext"] = timing.median / ours.median
        records.append(record)
    return records


def show(record: dict) -> str:
    head = (
        f"{record['op']:<19}{record['distribution']:<10}{record['rows']:>5}{record['vocab']:>8} "
        f"{record['dtype']:<9}{record['provider']:<14}"
    )
    if record["check"] == "FAIL":
        return head + "FAIL"
    time = record["microseconds"]
    spread = f"{time['percentile_20']:.0f}..{time['percentile_80']:.0f}"
    ratio = record.get("ratio_to_autodeco_ext", float("nan"))
    return f"{head}{time['median']:>10.0f} us ({spread:>13}) {ratio:>8.1f}x"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--vocab", nargs="+", type=int, default=[151936])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument(
        "--distribution", nargs="+", choices=DISTRIBUTIONS, default=list(DISTRIBUTIONS)
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="per provider and case (default: 1)"
    )
    parser.add_argument("--output", type=Path, help="write the records to this JSON file")
    options = parser.parse_args()
    if min(*options.rows, *options.vocab, options.threads) < 1 or options.seconds <= 0:
        parser.error("--rows, --vocab, --threads and --seconds must be positive")
    torch.set_num_threads(options.threads)
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    result: dict = {"command": command, "machine": machine(), "records": []}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    for op in options.op:
        for dtype in options.dtype:
            for vocab in options.vocab:
                for rows in options.rows:
                    for distribution in options.distribution:
                        records = run_case(op, distribution, rows, vocab, dtype, options.seconds)
                        result["records"] += records
                        print("\n".join(show(record) for record in records), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    ours = [record for record in result["records"] if record["provider"] == "autodeco_ext"]
    return 1 if any(record["check"] == "FAIL" for record in ours) else 0


if __name__ == "__main__":
    raise SystemExit(main())

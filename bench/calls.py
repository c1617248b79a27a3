"""What one call costs besides the row: a [1, 8] input against torch.argmax.

python -m bench calls
python -m bench calls --device cuda --output result.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import autodeco_ext
from bench.machine import machine
from bench.timing import time_together

_CALLS = 20  # of one sample: a clock reading is not free beside a call of a microsecond


def variants(device: str) -> dict[str, Callable[[], object]]:
    """The ways to call `sample`, and torch.argmax, which is what a call costs at least."""
    logits = torch.arange(8.0, device=device)[None]
    one = torch.ones(1, device=device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    return {
        "torch.argmax": lambda: torch.argmax(logits, dim=-1),
        "tensors, seeds given": lambda: autodeco_ext.sample(logits, one, one, seed=seed),
        "scalars, seed given": lambda: autodeco_ext.sample(logits, 0.7, 0.9, seed=0),
        "scalars, torch generator": lambda: autodeco_ext.sample(logits, 0.7, 0.9),
        "tensors, torch generator": lambda: autodeco_ext.sample(logits, one, one),
        "tensors, return_info": lambda: autodeco_ext.sample(
            logits, one, one, seed=seed, return_info=True
        ),
    }


def measure(device: str, inference_mode: bool, seconds: float) -> list[dict]:
    """One record per way of calling."""

    def repeated(call: Callable[[], object]) -> Callable[[int], None]:
        def run(_: int) -> None:
            for _ in range(_CALLS):
                call()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    with torch.inference_mode(inference_mode):
        functions = {name: repeated(call) for name, call in variants(device).items()}
        timings = time_together(functions, seconds)
    least = timings["torch.argmax"].median
    return [
        {
            "call": name,
            "inference_mode": inference_mode,
            "microseconds": {key: value / _CALLS for key, value in timing._asdict().items()},
            "ratio_to_argmax": timing.median / least,
        }
        for name, timing in timings.items()
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="per way (default: 1)")
    parser.add_argument("--output", type=Path, help="write the records to this JSON file")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"bench calls: needs a CUDA GPU that torch can use, and torch {torch.__version__} "
            "finds none",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "bench", "calls", *arguments])
    result: dict = {"command": command, "machine": machine(), "records": []}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    for inference_mode in (False, True):
        for record in measure(options.device, inference_mode, options.seconds):
            result["records"].append(record)
            print(
                f"{'inference mode' if inference_mode else 'plain':<15}{record['call']:<26}"
                f"{record['microseconds']['median']:>8.2f} us {record['ratio_to_argmax']:>6.2f} x "
                "torch.argmax"
            )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0

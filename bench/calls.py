"""What one call costs besides the row: a [1, 8] input against torch.argmax.

Ways to call `sample`, in inference mode and outside; then `autodeco_loss` with its gradients and
without, and with a product in its place, also after 48 MiB were written, which leave nothing of
torch and Python in a core's own caches, as large logits do.

python -m bench calls
python -m bench calls --device cuda --output result.json
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import autodeco_ext
from autodeco_ext.reference import AutoDecoLoss
from bench.machine import machine
from bench.providers import torch_losses
from bench.timing import time_together

_CALLS = 20  # of one sample: a clock reading is not free beside a call of a microsecond
_WRITTEN_BYTES = 48 * 2**20  # more than a core's own caches; servers may share a larger one
_LEAST = "torch.argmax"
_Calls = dict[str, Callable[[], object]]


def variants(device: str) -> _Calls:
    """The ways to call `sample`, and torch.argmax, which is what a call costs at least."""
    logits = torch.arange(8.0, device=device)[None]
    one = torch.ones(1, device=device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    return {
        _LEAST: lambda: torch.argmax(logits, dim=-1),
        "tensors, seeds given": lambda: autodeco_ext.sample(logits, one, one, seed=seed),
        "scalars, seed given": lambda: autodeco_ext.sample(logits, 0.7, 0.9, seed=0),
        "scalars, torch generator": lambda: autodeco_ext.sample(logits, 0.7, 0.9),
        "tensors, torch generator": lambda: autodeco_ext.sample(logits, one, one),
        "tensors, return_info": lambda: autodeco_ext.sample(
            logits, one, one, seed=seed, return_info=True
        ),
    }


def _product(logits: Tensor, temperature: Tensor, top_p: Tensor, _: Tensor) -> AutoDecoLoss:
    return AutoDecoLoss(*[temperature * top_p] * 3)


def loss_variants(device: str) -> _Calls:
    """A loss with gradients for T and P, without, and what the least of losses takes."""
    logits = torch.arange(8.0, device=device)[None]
    one, half = torch.ones(1, device=device), torch.full((1,), 0.5, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    loss = functools.partial(autodeco_ext.autodeco_loss, easy_token_drop=0, reduction="none")
    arguments = (logits, one, half, label)
    return {
        _LEAST: lambda: torch.argmax(logits, dim=-1),
        "autodeco_loss with gradients": lambda: torch_losses.with_gradients(loss, *arguments),
        "autodeco_loss alone": lambda: loss(*arguments),
        "T P with gradients": lambda: torch_losses.with_gradients(_product, *arguments),
    }


def _records(mode: str, calls: _Calls, device: str, seconds: float, *, cold: bool) -> list[dict]:
    """One record per way of calling."""
    number = 1 if cold else _CALLS
    written = torch.empty(_WRITTEN_BYTES if cold else 0, dtype=torch.uint8, device=device)

    def repeated(call: Callable[[], object]) -> Callable[[int], None]:
        def run(_: int) -> None:
            for _ in range(number):
                call()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    def before() -> None:
        written.fill_(1)
        if device == "cuda":
            torch.cuda.synchronize()

    functions = {name: repeated(call) for name, call in calls.items()}
    # Writing takes far longer than a call, and is not counted: a cold one is called less often.
    timings = time_together(functions, seconds * number / _CALLS, before)
    least = timings[_LEAST].median
    return [
        {
            "call": name,
            "mode": mode,
            "microseconds": {key: value / number for key, value in timing._asdict().items()},
            "ratio_to_argmax": timing.median / least,
        }
        for name, timing in timings.items()
    ]


def measure(device: str, seconds: float) -> Iterator[dict]:
    """The records of every mode: sample, then the loss."""
    for mode, inference in (("plain", False), ("inference mode", True)):
        with torch.inference_mode(inference):
            yield from _records(mode, variants(device), device, seconds, cold=False)
    for mode, cold in (("plain", False), ("cold caches", True)):
        yield from _records(mode, loss_variants(device), device, seconds, cold=cold)


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
    for record in measure(options.device, options.seconds):
        result["records"].append(record)
        print(
            f"{record['mode']:<15}{record['call']:<30}{record['microseconds']['median']:>8.2f} us "
            f"{record['ratio_to_argmax']:>6.2f} x torch.argmax"
        )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0

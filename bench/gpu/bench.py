"""Times every op against its peers on the present GPU, each checked before it is timed.

Two times each, caches cold: per call inside a CUDA graph (the device alone), and per eager call.
Order: peaked rows of V = 151936 with 1, 64 and 256 rows, the other distributions at these shapes
and autodeco_loss with 4096 rows, the other rows at this V, then the other vocabularies; small ones
first within each. No provider begins after --minutes; one that has begun is not cut off.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from bench import cases
from bench.cuda_timing import CudaTimer, extra_bytes
from bench.gpu import Deadline, stage_parser, start
from bench.gpu.journal import Journal
from bench.machine import gpu_machine
from bench.options import add_case_options, require_cases, shapes
from bench.providers import Missing, Provider
from bench.rows import GOAL_VOCAB
from bench.runner import Inputs, Shape, beside_the_times, make_inputs, may_be_timed, verdict
from bench.summary import failed, line, with_ratios

_GOAL_ROWS = (1, 64, 256)
_GOAL_TOKENS = {"autodeco_loss": 4096}  # ops with a goal for more rows; at that V, without --rows
# Of all batches that a graph reads, and how many: a graph of more nodes takes long to make.
_INPUT_BYTES = 2**31
_MAX_BATCHES = 32
UNFINISHED = "ERROR: the run ended here"


def parser() -> argparse.ArgumentParser:
    result = stage_parser("bench", __doc__)
    add_case_options(
        result,
        rows=[1, 4, 16, 64, 256, 1024],
        vocab=[32000, 128256, 151936, 201088, 262144],
        dtype=["bfloat16", "float32"],
    )
    result.add_argument(
        "--seconds", type=float, default=0.15, help="per time taken (default: 0.15)"
    )
    result.add_argument(
        "--retry", action="store_true", help="also what has failed, or found no peer, before"
    )
    return result


def wanted(options: argparse.Namespace) -> list[Shape]:
    result = shapes(parser(), options)
    if options.rows == parser().get_default("rows") and GOAL_VOCAB in options.vocab:
        for op in set(options.op) & set(_GOAL_TOKENS):
            own = {"op": [op], "rows": [_GOAL_TOKENS[op]], "vocab": [GOAL_VOCAB]}
            result += shapes(parser(), argparse.Namespace(**{**vars(options), **own}))
    require_cases(parser(), options, result)
    return sorted(result, key=priority)


def priority(shape: Shape) -> tuple:
    """Sorts important shapes first, small ones before large ones."""
    at_goal = shape.vocab == GOAL_VOCAB and shape.rows in _GOAL_ROWS
    tier = 0 if at_goal and shape.distribution == "peaked" else 1 if at_goal else 2
    if shape.vocab == GOAL_VOCAB and shape.rows == _GOAL_TOKENS.get(shape.op):
        tier = 1
    if shape.vocab != GOAL_VOCAB:
        tier = 3
    return tier, shape.logits_bytes, cases.NAMES.index(shape.op)


def run(options: argparse.Namespace) -> int:
    folder, deadline = start(options)
    facts = gpu_machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    journal = Journal(folder / "bench.jsonl", facts)
    timer = CudaTimer(options.seconds)
    left = 0
    shapes_wanted = wanted(options)
    for shape in shapes_wanted:
        waiting = _waiting(journal, shape, options.retry)
        if not waiting:
            continue
        begun = _run_case(shape, waiting, journal, timer, deadline)
        left += begun < len(waiting)
        if not begun:
            continue
        of_case = with_ratios(list(journal.of(shape).values()))
        print("\n".join(map(line, of_case)), flush=True)
    records = with_ratios(journal.records())
    command = shlex.join(["python", "-m", "bench", "gpu", "bench", *sys.argv[3:]])
    result = {"command": command, "machine": facts, "records": records}
    (folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    _write_charts(folder)
    if left:
        print(
            f"bench gpu bench: {left} of {len(shapes_wanted)} cases are left: type the same "
            "command again"
        )
    return 1 if failed(records) else 0


def _waiting(journal: Journal, shape: Shape, retry: bool) -> dict[str, Provider | Missing]:
    """The providers of a case that have no result yet."""

    def is_done(name: str) -> bool:
        record = journal.of(shape).get(name)
        if record is None:
            return False
        if record["check"] == UNFINISHED:  # once may be the end of the time, twice is no accident
            return record["attempts"] >= 2 and not retry
        return "microseconds" in record or not retry

    providers = cases.case(shape.op).providers("cuda")
    return {name: provider for name, provider in providers.items() if not is_done(name)}


def _run_case(
    shape: Shape,
    providers: dict[str, Provider | Missing],
    journal: Journal,
    timer: CudaTimer,
    deadline: Deadline,
) -> int:
    """How many of the providers have begun before the deadline."""
    if deadline.left() < 0:
        return 0
    count = max(2, min(_MAX_BATCHES, _INPUT_BYTES // shape.logits_bytes))
    inputs = make_inputs(shape, count, "cuda")
    begun = 0
    for name, provider in providers.items():
        if deadline.left() < 0:
            break
        begun += 1
        record = {**shape._asdict(), "provider": name}
        if isinstance(provider, Missing):
            journal.add({**record, "check": provider.reason})
            continue
        # Replaced by the result, unless this provider hangs or takes the process with it.
        attempts = journal.of(shape).get(name, {}).get("attempts", 0) + 1
        journal.add({**record, "check": UNFINISHED, "attempts": attempts})
        record["check"] = verdict(shape.op, provider, inputs)
        if may_be_timed(record["check"]):
            record.update(_times(provider, inputs, timer))
        journal.add({**record, **beside_the_times(provider, record["check"], inputs)})
        _require_device(name, shape)
    torch.cuda.empty_cache()
    return begun


def _times(provider: Provider, inputs: Inputs, timer: CudaTimer) -> dict:
    count = len(inputs.rounds)

    def call(number: int) -> object:
        return inputs.call(provider, number)

    calls = timer.calls(call, count)._asdict()
    result = {"call_microseconds": calls, "extra_bytes": extra_bytes(call)}
    if provider.waits:
        return {**result, "microseconds": calls, "graph": "none: it waits for the device"}
    try:
        return {**result, "microseconds": timer.graph(call, count)._asdict(), "graph": "yes"}
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        return {**result, "microseconds": calls, "graph": f"none: {reason}"}


def _require_device(name: str, shape: Shape) -> None:
    """Ends the run if the device, or torch's generator after a failed capture, is unusable."""
    try:
        torch.rand(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(
            f"bench gpu bench: {name} left the device unusable at {shape}: {reason}. It is "
            "recorded; type the same command again to go on after it"
        ) from None


def _write_charts(folder: Path) -> None:
    from bench import plot  # matplotlib need not be there for the times

    for path in plot.write(folder / "bench.json", folder):
        print(f"wrote {path}")

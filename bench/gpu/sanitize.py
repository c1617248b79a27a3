"""Runs every op under compute-sanitizer: memcheck, racecheck, synccheck and initcheck.

What runs is bench/gpu/exercise.py. Tools that passed are not run again; --again runs all. After the
first, a tool begins only where half of --minutes are left. initcheck is left out of a build that
has no clusters: what it would report is intended (`meet` in csrc/cuda/team.cuh).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import torch

from bench.gpu import stage_parser, start
from bench.gpu.tools import require, run_logged, tail
from bench.machine import gpu_machine, origin

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_FOUND = 86  # exit code when the sanitizer found something
_CLUSTERS_FROM = 90  # the least architecture whose code has them
_INTENDED = (
    "without clusters the blocks of a row meet in memory that holds anything, and read it before "
    "anything was written"
)


def parser() -> argparse.ArgumentParser:
    result = stage_parser("sanitize", __doc__)
    result.add_argument("--tool", nargs="+", choices=TOOLS, default=list(TOOLS))
    result.add_argument("--again", action="store_true", help="also what has passed")
    return result


def run(options: argparse.Namespace) -> int:
    folder, deadline = start(options)
    path = folder / "sanitize.json"
    facts = gpu_machine()
    results: dict[str, dict] = {}
    if path.exists() and not options.again:
        saved = json.loads(path.read_text())
        if origin(saved["machine"]) == origin(facts):
            results = saved["tools"]
    tools = options.tool
    if "initcheck" in tools and not has_clusters(
        facts["architectures"], torch.cuda.get_device_capability()
    ):
        print(f"initcheck  left out: {_INTENDED}")
        tools = [tool for tool in tools if tool != "initcheck"]
    begun = False
    for tool in tools:
        if results.get(tool, {}).get("outcome") == "passed":
            print(f"{tool:<10} passed before")
            continue
        # Cut off, it would begin anew with the next command.
        if deadline.left() < (30 * options.minutes if begun else 30):
            break
        begun = True
        results[tool] = _run_tool(tool, folder, deadline.left())
        path.write_text(json.dumps({"machine": facts, "tools": results}, indent=1) + "\n")
        result = results[tool]
        print(f"{tool:<10} {result['outcome']} in {result['seconds']} s: {result['summary']}")
        if result["outcome"] != "passed":
            print(result["log"], flush=True)
    left = [tool for tool in tools if results.get(tool, {}).get("outcome") in (None, "stopped")]
    if left:
        print(f"left: {', '.join(left)}; type the same command again")
    passed = all(results.get(tool, {}).get("outcome") == "passed" for tool in tools)
    return 0 if passed else 1


def has_clusters(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a build for these (`90a-real 80-virtual`) has clusters on such a device.

    The code that runs is that for the highest architecture of those that run there. Where the list
    names none (`native`, `all`), it was made for the device.
    """
    device = 10 * capability[0] + capability[1]
    runs = [
        int(number)
        for number, suffix, kind in re.findall(r"\b(\d+)([af]?)(-real|-virtual)?\b", architectures)
        if _runs_on(device, int(number), suffix, kind)
    ]
    return max(runs, default=device) >= _CLUSTERS_FROM


def _runs_on(device: int, number: int, suffix: str, kind: str) -> bool:
    """Code with the suffix a runs on its own device alone; machine code, and any with the suffix f,
    on the later ones of its generation; PTX on all later ones."""
    if suffix == "a":
        return number == device
    is_ptx = suffix == "" and kind != "-real"  # without a kind: both
    return number <= device and (is_ptx or number // 10 == device // 10)


def _run_tool(tool: str, folder: Path, seconds: float) -> dict:
    log = folder / f"sanitize-{tool}.log"
    command = [require("compute-sanitizer"), "--tool", tool, "--error-exitcode", str(_FOUND)]
    command += [sys.executable, "-m", "bench.gpu.exercise"]
    begin = time.monotonic()
    # Without torch's pool every tensor has bounds of its own, which memcheck can see.
    code = run_logged(command, log, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    text = log.read_text(errors="replace")
    summaries = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", text, re.MULTILINE)
    # The exit code alone would also be 0 if the sanitizer had not seen the program.
    outcome = "passed" if code == 0 and summaries else "stopped" if code == 124 else "failed"
    result = {
        "outcome": outcome,
        "exit_code": code,
        "seconds": round(time.monotonic() - begin),
        "summary": summaries[-1] if summaries else "the sanitizer printed no summary",
    }
    if outcome != "passed":
        result["log"] = tail(log, 60)
    log.unlink()
    return result

"""Runs every op under compute-sanitizer: memcheck, racecheck, synccheck and initcheck.

What runs is bench/gpu/exercise.py. Tools that passed are not run again; --again runs all.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

from bench.gpu import stage_parser, start
from bench.gpu.tools import require, run_logged, tail
from bench.machine import gpu_machine, origin

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_FOUND = 86  # exit code when the sanitizer found something


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
    for tool in options.tool:
        if results.get(tool, {}).get("outcome") == "passed":
            print(f"{tool:<10} passed before")
            continue
        if deadline.left() < 30:
            break
        results[tool] = _run_tool(tool, folder, deadline.left())
        path.write_text(json.dumps({"machine": facts, "tools": results}, indent=1) + "\n")
        result = results[tool]
        print(f"{tool:<10} {result['outcome']} in {result['seconds']} s: {result['summary']}")
        if result["outcome"] != "passed":
            print(result["log"], flush=True)
    left = [tool for tool in options.tool if tool not in results]
    if left:
        print(f"left: {', '.join(left)}; type the same command again")
    passed = all(results.get(tool, {}).get("outcome") == "passed" for tool in options.tool)
    return 0 if passed else 1


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

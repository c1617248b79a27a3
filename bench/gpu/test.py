"""Runs the whole test suite on this GPU, one process for each file, a few at a time.

A missing backend `cuda` fails. Files that passed are not run again; --again runs all.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import sys
import time
from pathlib import Path

from bench.gpu import ROOT, Deadline, stage_parser, start
from bench.gpu.tools import end_all, run_logged, tail
from bench.machine import gpu_machine, origin

_PASSED = "passed"
_NO_TESTS = 5  # pytest's exit code


def parser() -> argparse.ArgumentParser:
    result = stage_parser("test", __doc__)
    result.add_argument("--again", action="store_true", help="also what has passed")
    result.add_argument(
        "--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 1) // 2)), help="at a time"
    )
    result.add_argument("--files", nargs="+", metavar="FILE", help="instead of the whole suite")
    return result


def suite() -> list[str]:
    """Every test file, and the package for its doctests."""
    files = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("python_tests/test_*.py"))
    return [*files, "autodeco_ext"]


def run(options: argparse.Namespace) -> int:
    folder, deadline = start(options)
    path = folder / "tests.json"
    facts = gpu_machine()
    results: dict[str, dict] = {}
    if path.exists() and not options.again:
        saved = json.loads(path.read_text())
        if origin(saved["machine"]) == origin(facts):
            results = saved["files"]
    wanted = options.files or suite()
    waiting = [name for name in wanted if results.get(name, {}).get("outcome") != _PASSED]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running: dict[concurrent.futures.Future, str] = {}
        try:
            for name in waiting:
                running[pool.submit(_run_file, name, folder, deadline)] = name
            for future in concurrent.futures.as_completed(running):
                name, result = running[future], future.result()
                if result is None:
                    continue
                results[name] = result
                path.write_text(json.dumps({"machine": facts, "files": results}, indent=1) + "\n")
                print(f"{name:<44} {result['outcome']:<8} {result['summary']}", flush=True)
                if result["outcome"] != _PASSED:
                    print(result["log"], flush=True)
        except BaseException:  # an interrupt or a signal, too
            pool.shutdown(wait=False, cancel_futures=True)
            # Again, for a thread that was just starting a process.
            while not all(future.done() for future in running):
                end_all()
                time.sleep(0.01)
            raise
    return _conclude(wanted, results)


def _run_file(name: str, folder: Path, deadline: Deadline) -> dict | None:
    """None if there was no time to begin."""
    if deadline.left() < 30:
        return None
    log = folder / f"test-{Path(name).stem}.log"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", name]
    begin = time.monotonic()
    code = run_logged(
        command, log, deadline.left(), AUTODECO_EXPECT_BACKENDS="cuda", OMP_NUM_THREADS="1"
    )
    text = log.read_text(errors="replace")
    summaries = re.findall(r"^=*\s?(\d+ \w+.*? in [\d.:]+s.*?)=*$", text, re.MULTILINE)
    backends = re.findall(r"autodeco_ext backends run: ([^;]*)", text)
    outcome = _PASSED if code in (0, _NO_TESTS) else "stopped" if code == 124 else "failed"
    result = {
        "outcome": outcome,
        "exit_code": code,
        "seconds": round(time.monotonic() - begin, 1),
        "summary": summaries[-1].strip() if summaries else f"exit code {code}",
        "backends": backends[-1] if backends else "",
        "skipped": re.findall(r"^SKIPPED .*$", text, re.MULTILINE),
    }
    if outcome != _PASSED:
        result["log"] = tail(log, 60)
    log.unlink()
    return result


def _conclude(wanted: list[str], results: dict[str, dict]) -> int:
    left = [name for name in wanted if name not in results]
    failed = [name for name in wanted if name in results and results[name]["outcome"] != _PASSED]
    on_cuda = [name for name in wanted if "cuda" in results.get(name, {}).get("backends", "")]
    print(
        f"bench gpu test: {len(wanted) - len(left) - len(failed)} of {len(wanted)} files passed, "
        f"{len(failed)} did not, {len(on_cuda)} ran tests on cuda"
    )
    if left:
        print(f"{len(left)} are left: type the same command again")
    return 1 if failed or left or not on_cuda else 0

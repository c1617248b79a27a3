"""Builds for one architecture, that of the present GPU, into this checkout.

With `--architecture 80-virtual` a GPU that has clusters runs the code of those that have none: it
is PTX, which the driver compiles at the first launch. Prints the seconds and the resources of every
kernel, makes a first call on the GPU, and compiles the peers that are source.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.gpu import ROOT, Deadline, stage_parser
from bench.gpu.tools import environment, require, run_logged, tail


def parser() -> argparse.ArgumentParser:
    result = stage_parser("build", __doc__)
    result.add_argument(
        "--architecture", metavar="NAME", help="as CMake calls it (default: this GPU's)"
    )
    result.add_argument("--no-peers", action="store_true", help="do not compile FlashInfer")
    return result


def architecture() -> str:
    """What CMake calls this GPU's architecture: 90a-real for an H100, 89-real for an L4."""
    major, minor = torch.cuda.get_device_capability()
    # From sm_90 on, features of one architecture alone have the suffix a; sm_120 needs none.
    suffix = "a" if major in (9, 10) else ""
    return f"{major}{minor}{suffix}-real"


def run(options: argparse.Namespace) -> int:
    # The extension may not be there yet, so the folder is not named after bench.machine.
    deadline = Deadline(time.monotonic() + 60 * options.minutes)
    folder = options.output or ROOT / "build" / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    wanted = options.architecture or architecture()
    begin = time.monotonic()
    # In place: needs no writable site-packages, and `python -m` finds the checkout first.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    code = run_logged(
        command,
        log,
        deadline.left(),
        AUTODECO_CUDA="on",
        AUTODECO_CUDA_ARCHS=wanted,
        CUDACXX=require("nvcc"),
    )
    if code != 0:
        print(tail(log))
        print(f"bench gpu build: failed with exit code {code}; the whole log is {log}")
        return 1
    print(f"built for {wanted} in {time.monotonic() - begin:.0f} s", flush=True)
    if wanted.endswith("-virtual"):
        print("no resources to print: the driver compiles the kernels at their first launch")
    elif not _is_over(deadline, "the table of resources"):
        _print_resources(log, deadline)
    if _is_over(deadline, "the first call on the GPU"):
        return 1
    if not _first_call_is_right(folder / "first_call.log", deadline):
        return 1
    if not options.no_peers and not _is_over(deadline, "flashinfer"):
        _compile_peers(folder / "peers.log", deadline)
    return 0


def _is_over(deadline: Deadline, left: str) -> bool:
    """Says what is left where no time is."""
    if deadline.left() > 0:
        return False
    print(f"left: {left}; type the same command again")
    return True


def _first_call_is_right(log: Path, deadline: Deadline) -> bool:
    code = "import torch, autodeco_ext as a; x = torch.randn(3, 5000, device='cuda');"
    code += "assert a.sample(x, 0.0).tolist() == x.argmax(-1).tolist(); print('first call right')"
    result = run_logged([sys.executable, "-c", code], log, deadline.left())
    print(tail(log), flush=True)
    if result != 0:
        print(f"bench gpu build: the first call on the GPU failed with exit code {result}")
    return result == 0


def _print_resources(log: Path, deadline: Deadline) -> None:
    """The table that tools/check_cuda.sh prints, of this build."""
    if "Compiling entry function" not in log.read_text(errors="replace"):
        print("no kernel changed since the last build: `rm -r build` and build again for the table")
        return
    folder = log.parent
    asker, asked = folder / "shared_memory", folder / "shared_memory.txt"
    compiler = [require("nvcc"), "-std=c++20", "--expt-relaxed-constexpr", "-Icsrc/include"]
    commands = {
        asked.with_suffix(".log"): [*compiler, "-o", str(asker), "tools/shared_memory.cu"],
        asked: [str(asker.resolve()), "151936", "1048576"],
    }
    for output, command in commands.items():
        if run_logged(command, output, min(120, deadline.left())) != 0:
            print(tail(output))
            return
    table = [sys.executable, "tools/kernel_resources.py", str(log), str(asked)]
    # A fault is shown; the build has succeeded, and CI is what fails on it.
    subprocess.run(table, cwd=ROOT, env=environment(), check=False)


def _compile_peers(log: Path, deadline: Deadline) -> None:
    begin = time.monotonic()
    code = "from bench.providers import flash_infer; print(flash_infer.prepare())"
    result = run_logged([sys.executable, "-c", code], log, deadline.left())
    text = tail(log, 1) if result == 0 else f"failed, see {log}:\n{tail(log, 8)}"
    print(f"flashinfer: {text} ({time.monotonic() - begin:.0f} s)")

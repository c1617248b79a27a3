"""Programs of a CUDA toolkit, on PATH or not, and how stages run others: with a log and a limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from torch.utils.cpp_extension import CUDA_HOME

from bench.gpu import ROOT


def find(program: str) -> str | None:
    """Path of nvcc or compute-sanitizer."""
    homes = [os.environ.get("CUDA_HOME"), CUDA_HOME, "/usr/local/cuda"]
    folders = [
        Path(home) / inside
        for home in homes
        if home
        for inside in ("bin", "compute-sanitizer", "extras/compute-sanitizer")
    ]
    return shutil.which(program) or next(
        (str(folder / program) for folder in folders if (folder / program).is_file()), None
    )


def require(program: str) -> str:
    """The same; a sentence if there is none."""
    found = find(program)
    if found is None:
        raise SystemExit(
            f"bench gpu: needs {program}, and there is none on PATH or in the CUDA folder; "
            "put it on PATH or set CUDA_HOME"
        )
    return found


def environment(**extra: str) -> Mapping[str, str]:
    """For child processes: this checkout is imported, and nvcc and ninja are on PATH."""
    nvcc = find("nvcc")
    path = [str(Path(nvcc).parent)] if nvcc else []
    path.append(sysconfig.get_path("scripts"))
    python_path = [str(ROOT)]
    for variable, values in (("PATH", path), ("PYTHONPATH", python_path)):
        if os.environ.get(variable):
            values.append(os.environ[variable])
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(python_path),
        **extra,
    }


_running: set[subprocess.Popen] = set()


def run_logged(command: list[str], log: Path, seconds: float, **extra: str) -> int:
    """Runs a command with its output in a file. Returns its exit code; 124: it ran too long.

    What ran too long is ended with everything that it started, which would go on using the GPU and
    the cores.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(**extra),
            start_new_session=True,  # so that there is a process group to end
        )
        _running.add(process)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {seconds:.0f} s\n")
            return 124
        finally:
            end(process)
            _running.discard(process)


def end(process: subprocess.Popen) -> None:
    """With everything that it started, if it has not ended by itself."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # its own thread has just seen its end
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_all() -> None:
    """What other threads have started: no signal to this process reaches it."""
    for process in list(_running):
        end(process)


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

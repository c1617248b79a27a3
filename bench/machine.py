"""What a number must be quoted with: processor, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import autodeco_ext


def _processor() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def machine() -> dict[str, str | int]:
    """Facts about this machine and these versions, for the head of a result file."""
    return {
        "processor": _processor(),
        "isa": autodeco_ext.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "autodeco_ext": autodeco_ext.__version__,
        "commit": _commit(),
    }

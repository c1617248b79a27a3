"""What a number must be quoted with: processor, GPU, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import autodeco_ext


def _first_line(command: list[str]) -> str:
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    lines = result.stdout.strip().splitlines()
    return lines[0] if result.returncode == 0 and lines else ""


def _processor() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _last_level_cache_bytes() -> int:
    """What Linux says of the first core's; 0 elsewhere."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(one.read_text().strip().removesuffix("K")) * 1024 for one in sizes), default=0)


def _memory_bytes() -> int:
    """0 where the system does not say."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):
        return 0
    page, pages = map(os.sysconf, names)
    return page * max(pages, 0)


def commit() -> str:
    """The commit, «-dirty» if the checkout differs from it, or «unknown» outside a repository.

    What an earlier benchmark wrote is no difference.
    """
    described = _first_line(["git", "describe", "--always"])
    sources = [":/", ":(top,exclude)bench/results"]
    changed = _first_line(["git", "status", "--porcelain", "--untracked-files=no", "--", *sources])
    return f"{described}-dirty" if described and changed else described or "unknown"


def machine() -> dict[str, str | int]:
    """Facts about this machine and these versions, for the head of a result file."""
    return {
        "processor": _processor(),
        "isa": autodeco_ext.cpu_isa(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "last_level_cache_bytes": _last_level_cache_bytes(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": str(autodeco_ext.build_info()["compiler"]),
        "python": platform.python_version(),
        "transformers": metadata.version("transformers"),
        "torch": torch.__version__,
        "autodeco_ext": autodeco_ext.__version__,
        "commit": commit(),
    }


def gpu_machine() -> dict[str, str | int]:
    """The same for a result of the present GPU."""
    properties = torch.cuda.get_device_properties()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver": _first_line(query) or "unknown",
        "cuda": str(torch.version.cuda),
        "architectures": autodeco_ext.build_info()["cuda_architectures"],
        **machine(),
    }


def origin(facts: dict) -> dict:
    """What two results of a GPU must share to be parts of one."""
    return {key: facts[key] for key in ("gpu", "torch", "commit", "architectures")}


def gpu_folder_name() -> str:
    """`gpu-nvidia-h100-80gb-hbm3`."""
    name = torch.cuda.get_device_properties().name.lower()
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", name).strip("-")

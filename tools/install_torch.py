"""Installs torch into the environment that runs it; never a CUDA build without being asked.

    python tools/install_torch.py                  # a CPU build, or a sentence that says why not
    python tools/install_torch.py 'torch==2.13.0'  # exactly this, CUDA packages and all

On Linux the usual index serves torch with gigabytes of CUDA packages. This script asks pip what it
would install and installs it only if no CUDA package is among it.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

VERSION = "2.13.0"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def planned_packages(requirement: str) -> list[str] | None:
    """Names of what pip would install for `requirement`; None if the index has no such version."""
    command = [*PIP, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    result = subprocess.run([*command, requirement], capture_output=True, text=True)
    if result.returncode != 0:
        return None
    return [item["metadata"]["name"].lower() for item in json.loads(result.stdout)["install"]]


def is_cuda_package(name: str) -> bool:
    return name.startswith(("nvidia-", "cuda-", "cuda_", "triton"))


def cpu_requirement() -> str:
    """A requirement that installs no CUDA package, or SystemExit with what to type."""
    for requirement in (f"torch=={VERSION}+cpu", f"torch=={VERSION}"):
        packages = planned_packages(requirement)
        if packages is not None and not any(map(is_cuda_package, packages)):
            return requirement
    raise SystemExit(
        f"The package index offers no CPU build of torch {VERSION}. Either name one that has it "
        f"(pytorch.org, «Get started», gives the address of the CPU wheels): `make ... "
        f"PIP_EXTRA_INDEX_URL=ADDRESS`, or accept the CUDA packages: `make ... "
        f"TORCH='torch=={VERSION}'`."
    )


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    if not wanted and importlib.util.find_spec("torch") is not None:
        return
    requirement = wanted or cpu_requirement()
    print(f"installing {requirement}", flush=True)
    subprocess.run([*PIP, "install", "--quiet", requirement], check=True)


if __name__ == "__main__":
    main()

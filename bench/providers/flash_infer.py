"""FlashInfer's rejection samplers, from the package that bench/fetch_peers.py unpacked.

They need probabilities, so its softmax belongs to the time. Seed and offset are given: without them
it reads torch's generator on the host.

The package is compiled when first used (nvcc and ninja, about a minute, no network). Its __init__
imports attention, communication and their dependencies; an empty package of the same name with the
same path makes `flashinfer.sampling` importable alone.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import sys
import sysconfig
import types
from pathlib import Path

import torch

from bench.cases.kept_bounds import token_up_to_ties_is_right
from bench.fetch_peers import requirement
from bench.providers import NOT_FETCHED, PEERS, Missing, Provider

FOLDER = PEERS / "flashinfer"
_NAMES = ("flashinfer", "flashinfer top_k_top_p")


def _link_folder() -> Path:
    """A folder with libcudart.so and libcuda.so for the linker.

    A torch wheel has only the versioned names, and a machine with a driver need not have its stub.
    """
    folder = FOLDER / "link"
    folder.mkdir(exist_ok=True)
    loaded = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    for library in ("libcudart.so", "libcuda.so"):
        link = folder / library
        found = [path for path in loaded if Path(path).name.startswith(library)]
        if found:
            link.unlink(missing_ok=True)
            link.symlink_to(found[0])
    return folder


def _prepend(variable: str, *folders: Path) -> None:
    before = [os.environ[variable]] if os.environ.get(variable) else []
    os.environ[variable] = os.pathsep.join([*map(str, folders), *before])


@functools.cache
def load() -> types.ModuleType | None:
    """The module `flashinfer.sampling`, or None where the package was not fetched."""
    if not (FOLDER / "flashinfer" / "sampling.py").is_file():
        return None
    sys.path.insert(0, str(FOLDER))
    package = types.ModuleType("flashinfer")
    package.__path__ = [str(FOLDER / "flashinfer")]
    sys.modules["flashinfer"] = package
    os.environ.setdefault("FLASHINFER_WORKSPACE_BASE", str(FOLDER / "build"))
    if torch.cuda.is_available():
        torch.cuda.init()  # loads the libraries that _link_folder looks for
        major, minor = torch.cuda.get_device_capability()
        suffix = "a" if major >= 9 else ""
        os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", f"{major}.{minor}{suffix}")
        nvcc = shutil.which("nvcc")
        if nvcc is not None:
            os.environ.setdefault("CUDA_HOME", str(Path(nvcc).resolve().parent.parent))
        _prepend("CPATH", FOLDER / "include")  # curand's headers are not in every toolkit
        _prepend("LIBRARY_PATH", _link_folder())
        _prepend("PATH", Path(sysconfig.get_path("scripts")))  # ninja, where it came with pip
    return importlib.import_module("flashinfer.sampling")


def prepare() -> str:
    """Compiles the kernels; returns what was done, in words."""
    sampling = load()
    if sampling is None:
        return NOT_FETCHED
    sampling.get_sampling_module()
    return "compiled"


def sample() -> dict[str, Provider | Missing]:
    try:
        sampling = load()
    except ImportError as error:  # such as bench/peers of another Python
        return dict.fromkeys(_NAMES, Missing(f"does not import: {error}"))
    if sampling is None:
        return dict.fromkeys(_NAMES, Missing(NOT_FETCHED))

    def top_p(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        probs = sampling.softmax(logits, temperature=t)
        return sampling.top_p_sampling_from_probs(probs, p, seed=0, offset=0)

    def top_k_top_p(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        scaled = torch.div(logits, t[:, None])  # it takes no temperature
        return sampling.top_k_top_p_sampling_from_logits(
            scaled, logits.shape[-1], p, filter_apply_order="joint", seed=0, offset=0
        )

    runs = (top_p, top_k_top_p)
    return {
        name: Provider(run, token_up_to_ties_is_right, package=requirement("flashinfer-python"))
        for name, run in zip(_NAMES, runs, strict=True)
    }

"""Loads the compiled extension, and says in one sentence what to type when that fails."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_OLDEST_TORCH = (2, 10)
REBUILD = "rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .`"


def _torch_release() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _load_extension() -> ModuleType:
    if _torch_release() < _OLDEST_TORCH:
        raise ImportError(
            f"autodeco_ext: torch must be 2.10 or newer, got {torch.__version__}; upgrade torch"
        )
    try:
        from autodeco_ext import _C
    except ImportError as error:
        here = Path(__file__).parent
        if not list(here.glob("_C.*")):
            checkout = (here.parent / "setup.py").is_file()
            advice = (
                "run from another folder to use an installed one, or build here with `make build`"
                if checkout
                else "the installation is incomplete: install autodeco_ext again"
            )
            raise ImportError(
                f"autodeco_ext: {here} holds the sources without a compiled extension; {advice}"
            ) from None  # Python takes the missing file for a circular import
        raise ImportError(
            f"autodeco_ext: the compiled extension does not load with torch {torch.__version__} "
            f"({error}); {REBUILD}"
        ) from error
    forced = os.environ.get("AUTODECO_CPU_ISA")
    if forced and not _C.set_cpu_isa(forced):
        raise ImportError(
            f"autodeco_ext: AUTODECO_CPU_ISA must be one of "
            f"{', '.join(_C.supported_cpu_isas())} here, got {forced!r}"
        )
    return _C


_extension = _load_extension()


def build_info() -> dict[str, Any]:
    """What was built, with what, and why.

    Returns:
        A dictionary with `version`, `compiler`, `torch_built_against`, `cpu_isas_built`,
        `cuda_built`, `cuda_decision`, and for a CUDA build its architectures, runtime and devices.

    Example:
        >>> build_info()["cuda_decision"]  # doctest: +SKIP
        'off: torch 2.13.0+cpu is a CPU build (AUTODECO_CUDA=on builds the CUDA half all the same)'
    """
    return _extension.build_info()


def why_no_cuda() -> str:
    """Why the ops refuse CUDA tensors and, if anything does, what helps; empty if they do not."""
    this_torch = f"torch {torch.__version__} is a"
    if torch.version.hip is not None:  # whose devices are called cuda
        return f"{this_torch} ROCm build and AMD GPUs are not supported; the CPU half works"
    if not torch.backends.cuda.is_built():  # has them without data only, in tracing
        return f"{this_torch} CPU build"
    info = build_info()
    if info["cuda_built"]:
        return ""
    return f"the CUDA half of this build is {info['cuda_decision']}; {REBUILD}"


def cpu_isa() -> str:
    """Name of the instruction set the CPU kernels use: `scalar`, `avx2` or `avx512`.

    It is compiled into the kernels and read from the table that the ops call.

    Example:
        >>> cpu_isa() in supported_cpu_isas()
        True
    """
    return _extension.cpu_isa()


def supported_cpu_isas() -> list[str]:
    """Names of the instruction sets that were built and that this machine can run.

    Example:
        >>> "scalar" in supported_cpu_isas()
        True
    """
    return _extension.supported_cpu_isas()


def set_cpu_isa(name: str) -> None:
    """Use one instruction set from now on, for the whole process.

    Args:
        name: one of `supported_cpu_isas()`.

    Raises:
        ValueError: if it was not built or this machine cannot run it.

    Example:
        >>> set_cpu_isa(cpu_isa())
    """
    if not _extension.set_cpu_isa(name):
        raise ValueError(
            f"autodeco_ext.set_cpu_isa: name must be one of "
            f"{', '.join(supported_cpu_isas())}, got {name!r}"
        )

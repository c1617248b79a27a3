"""autodeco info: versions, what was built and why, and which instruction set is in use."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any

SUMMARY = "versions, torch, CUDA, instruction set in use, what was built and why"
DESCRIPTION = (
    "Print versions, what was built and why, and which instruction set the CPU kernels use."
)
EXAMPLES = """\
examples:
  autodeco info
  autodeco info --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of lines"
    )


def run(arguments: argparse.Namespace) -> int:
    facts = collect()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    for title, group in facts.items():
        print(title)
        width = max(len(name) for name in group)
        for name, value in group.items():
            print(f"  {_label(name):<{width}}  {_as_text(value)}")
    return 0


def collect() -> dict[str, dict[str, Any]]:
    """Return everything that info prints, as groups of names and JSON-serialisable values."""
    import torch

    from autodeco_ext import _load
    from autodeco_ext._version import __version__

    return {
        "versions": {
            "autodeco_ext": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _installed(name) for name in ("transformers", "accelerate", "gguf")},
        },
        "machine": {
            "system": platform.platform(),
            "torch_threads": torch.get_num_threads(),
            "torch_cuda": torch.version.cuda,
            "cuda_devices": [
                torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
            ],
            "cpu_isa_in_use": _load.cpu_isa(),
            "cpu_isas_supported": _load.supported_cpu_isas(),
        },
        "build": dict(_load.build_info()),
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _label(name: str) -> str:
    spoken = {"cpu": "CPU", "isa": "ISA", "isas": "ISAs", "cuda": "CUDA"}
    if name == "autodeco_ext":
        return name
    return " ".join(spoken.get(word, word) for word in name.split("_"))


def _as_text(value: Any) -> str:
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_as_text(one) for one in value)
    return str(value)

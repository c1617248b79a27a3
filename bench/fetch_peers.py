"""Fetches the peers that benchmarks compare with, from their published packages into bench/peers/.

python bench/fetch_peers.py                     # for this Python
python bench/fetch_peers.py --only llama_cpp    # one peer, the others stay as they are
python bench/fetch_peers.py --python 3.12       # to be carried to a machine with another one

Only what the benchmarks import is unpacked, and nothing of it is committed. FlashInfer's kernels
are source: they are compiled on the machine with the GPU (bench/providers/flash_infer.py).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

PEERS = Path(__file__).resolve().parent / "peers"
# The tags that published wheels carry; pip takes no range.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")


class Package(NamedTuple):
    """What is taken from one wheel."""

    requirement: str
    folder: str  # inside bench/peers
    wanted: str  # what the names of its files match
    strip: str = ""  # left out of the names


PACKAGES = (
    Package(
        "flashinfer-python==0.7.2.post1",
        "flashinfer",
        r"flashinfer/([^/]+|(jit|trace)/.+)\.py"
        r"|flashinfer/data/csrc/(sampling|renorm|flashinfer_sampling_binding)\.cu"
        r"|flashinfer/data/csrc/(sampling|tvm_ffi)_utils\.h"
        r"|flashinfer/data/include/flashinfer/([^/]+|utils/.+)"
        r"|flashinfer/data/cccl/(cub|libcudacxx/include|thrust)/.+",
    ),
    Package("apache-tvm-ffi==0.1.15.post2", "flashinfer", r"(tvm_ffi/|apache_tvm_ffi-).+"),
    Package("nvidia-ml-py==13.615.71", "flashinfer", r"pynvml\.py"),
    Package(
        "nvidia-curand==10.4.5.25",
        "flashinfer/include",
        r"nvidia/cu13/include/.+\.h",
        strip="nvidia/cu13/include/",
    ),
    Package(
        "vllm==0.33.0",
        "vllm",
        r"vllm/v1/sample/ops/topk_topp_(sampler|triton)\.py"
        r"|vllm/model_executor/warmup/jit_warmup(_triton_helper)?\.py"
        r"|vllm/utils/math_utils\.py",
    ),
    Package("liger-kernel==0.8.5", "linear_losses", r"liger_kernel/.+\.py"),
    Package("cut-cross-entropy==25.1.1", "linear_losses", r"cut_cross_entropy/.+\.py"),
    # llama-cpp-python has no wheel; this one's library exports llama.cpp's C interface.
    Package(
        "xllamacpp==2026.10.11549",
        "llama_cpp",
        r"xllamacpp/xllamacpp\.abi3\.so",
        strip="xllamacpp/",
    ),
)
NAMES = tuple(dict.fromkeys(package.folder.split("/")[0] for package in PACKAGES))


def requirement(name: str) -> str:
    """`name==version` of what is fetched."""
    return next(p.requirement for p in PACKAGES if p.requirement.startswith(f"{name}=="))


def download(package: Package, python: str | None, folder: Path) -> Path:
    """The wheel of a package, from the index that pip is set up for."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), package.requirement]
    if python is not None:
        command += ["--python-version", python, "--implementation", "cp"]
        for platform in _PLATFORMS:
            command += ["--platform", platform]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(package: Package, wheel: Path, destination: Path) -> int:
    """Writes the wanted members; returns their bytes."""
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename
            if member.is_dir() or re.fullmatch(package.wanted, name) is None:
                continue
            target = destination / name.removeprefix(package.strip)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
            total += member.file_size
    if total == 0:
        raise SystemExit(f"fetch_peers: {wheel.name} has nothing that matches {package.wanted}")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", metavar="X.Y", help="for another version of Python, on Linux")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="PEER")
    options = parser.parse_args()
    for name in options.only:
        shutil.rmtree(PEERS / name, ignore_errors=True)
    for package in PACKAGES:
        if package.folder.split("/")[0] not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            wheel = download(package, options.python, Path(folder))
            size = unpack(package, wheel, PEERS / package.folder)
            print(
                f"{package.requirement:<34} {wheel.stat().st_size / 2**20:6.1f} MiB fetched, "
                f"{size / 2**20:5.1f} MiB kept in bench/peers/{package.folder}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Finds the torch to build against and starts CMake. All build logic is in CMakeLists.txt."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)


def find_torch() -> Path:
    """The folder of the installed torch, also under build isolation (then not on sys.path)."""
    places = [*sys.path, *(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
    for place in places:
        candidate = Path(place or ".") / "torch"
        if (candidate / "version.py").is_file() and (candidate / "include").is_dir():
            return candidate
    raise SystemExit(
        "autodeco_ext: no torch found to build against; type `pip install 'torch>=2.10'` first, "
        "and if it is installed, `pip install --no-build-isolation .`"
    )


def torch_versions(torch_dir: Path) -> dict[str, str]:
    """CMake's names of the versions in torch/version.py ('' for None), without importing torch."""
    text = (torch_dir / "version.py").read_text()
    stated = dict(re.findall(r"^(\w+)(?:: [^=]+)? = '([^']+)'", text, re.MULTILINE))
    version = stated.get("__version__")
    if version is None:
        raise SystemExit(f"autodeco_ext: {torch_dir / 'version.py'} states no torch version")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise SystemExit(f"autodeco_ext: torch must be 2.10 or newer, got {version}")
    return {
        "AUTODECO_TORCH_VERSION": version,
        "AUTODECO_TORCH_CUDA": stated.get("cuda", ""),
        "AUTODECO_TORCH_HIP": stated.get("hip", ""),
    }


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        torch_dir = find_torch()
        versions = torch_versions(torch_dir)
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # One folder per Python and torch, whose object files differ.
        environment = f"{sys.implementation.cache_tag}-torch-{versions['AUTODECO_TORCH_VERSION']}"
        build_dir = ROOT / "build" / f"cmake-{environment}"
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": destination,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "AUTODECO_VERSION": self.distribution.get_version(),
            "AUTODECO_TORCH_DIR": torch_dir.resolve(),
            **versions,
            "AUTODECO_CUDA": os.environ.get("AUTODECO_CUDA", "auto"),
        }
        if "AUTODECO_CUDA_ARCHS" in os.environ:
            definitions["AUTODECO_CUDA_ARCHS"] = os.environ["AUTODECO_CUDA_ARCHS"]
        configure = ["cmake", "-S", ROOT, "-B", build_dir, "-G", "Ninja", "--fresh"]
        configure += [f"-D{name}={value}" for name, value in definitions.items()]
        # Without build isolation, cmake and ninja are next to the interpreter, perhaps not on PATH.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        # One file a core: one or two more, as ninja has it, took 97 seconds in the place of 74.
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        environ = {"CMAKE_BUILD_PARALLEL_LEVEL": str(cores), **os.environ, "PATH": path}
        build = ["cmake", "--build", build_dir]
        build_dir.mkdir(parents=True, exist_ok=True)
        with open(build_dir / "lock", "w") as lock:
            # Another install from this folder would change where this one installs to.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for command in (configure, build, ["cmake", "--install", build_dir]):
                arguments = [str(part) for part in command]
                subprocess.run(arguments, check=True, env=environ)


# Without torch nothing can be built: say so before pip resolves and downloads dependencies.
if "sdist" not in sys.argv:
    torch_versions(find_torch())

setup(
    ext_modules=[Extension("autodeco_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

"""What a build says of itself, how it is forced and how it fails; most in a fresh process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autodeco_ext
from autodeco_ext import _load

NO_NVCC = "off: no nvcc found (put it on PATH or set CUDACXX)"
SWITCHED_OFF = "off: AUTODECO_CUDA=off (unset it to build the CUDA half)"
CPU_TORCH = "torch VERSION is a CPU build"
OTHER_TORCH = f"off: {CPU_TORCH} (AUTODECO_CUDA=on builds the CUDA half all the same)"
ROCM_TORCH = "torch VERSION is a ROCm build and AMD GPUs are not supported; the CPU half works"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_build_info_names_what_was_built_and_why() -> None:
    info = autodeco_ext.build_info()
    assert info["version"] == autodeco_ext.__version__
    assert info["cuda_decision"].startswith(("on: ", "off: "))
    assert info["cuda_built"] == info["cuda_decision"].startswith("on: ")
    assert "scalar" in info["cpu_isas_built"]


@pytest.mark.parametrize(
    ("torch_is", "decision", "why"),
    [
        ("CUDA", "on: nvcc 13.0", ""),
        ("CUDA", NO_NVCC, f"the CUDA half of this build is {NO_NVCC}; {_load.REBUILD}"),
        ("CUDA", SWITCHED_OFF, f"the CUDA half of this build is {SWITCHED_OFF}; {_load.REBUILD}"),
        ("CUDA", OTHER_TORCH, f"the CUDA half of this build is {OTHER_TORCH}; {_load.REBUILD}"),
        ("CPU", "on: nvcc 13.0", CPU_TORCH),
        ("CPU", NO_NVCC, CPU_TORCH),
        ("ROCm", f"off: {ROCM_TORCH}", ROCM_TORCH),
        ("ROCm", "on: nvcc 13.0", ROCM_TORCH),
    ],
)
def test_the_reason_for_no_cuda_advises_what_can_help(
    monkeypatch: pytest.MonkeyPatch, torch_is: str, decision: str, why: str
) -> None:
    info = {"cuda_built": decision.startswith("on: "), "cuda_decision": decision}
    monkeypatch.setattr(_load, "build_info", lambda: info)
    monkeypatch.setattr(torch, "__version__", "VERSION")
    monkeypatch.setattr(torch.version, "hip", "7.1" if torch_is == "ROCm" else None)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: torch_is != "CPU")
    assert _load.why_no_cuda() == why


@pytest.mark.parametrize("decision", [NO_NVCC, SWITCHED_OFF, OTHER_TORCH, f"off: {ROCM_TORCH}"])
def test_these_are_the_decisions_of_a_build(decision: str) -> None:
    text = (Path(__file__).parent.parent / "CMakeLists.txt").read_text()
    stated = decision.replace("VERSION", "${AUTODECO_TORCH_VERSION}")
    assert f'set(cuda_decision "{stated}")' in text


@pytest.mark.slow
@pytest.mark.parametrize("isa", autodeco_ext.supported_cpu_isas())
def test_the_environment_forces_an_instruction_set(isa: str) -> None:
    """cpu_isa() is compiled into the kernels and comes from the table that every op calls."""
    result = run("import autodeco_ext as a; print(a.cpu_isa())", AUTODECO_CPU_ISA=isa)
    assert result.stdout.strip() == isa


@pytest.mark.slow
def test_an_unknown_instruction_set_fails_the_import_with_a_sentence() -> None:
    result = run("import autodeco_ext", AUTODECO_CPU_ISA="sse9")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: autodeco_ext: AUTODECO_CPU_ISA must be one of scalar")
    assert last.endswith("got 'sse9'")


@pytest.mark.parametrize("isa", autodeco_ext.supported_cpu_isas())
def test_the_kernels_that_ops_call_are_those_of_the_chosen_set(isa: str) -> None:
    before = autodeco_ext.cpu_isa()
    autodeco_ext.set_cpu_isa(isa)
    assert autodeco_ext.cpu_isa() == isa
    autodeco_ext.set_cpu_isa(before)


def test_an_unknown_instruction_set_changes_nothing() -> None:
    before = autodeco_ext.cpu_isa()
    with pytest.raises(ValueError, match="name must be one of scalar"):
        autodeco_ext.set_cpu_isa("sse9")
    assert autodeco_ext.cpu_isa() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkout", "advice"),
    [(True, "build here with `make build`"), (False, "install autodeco_ext")],
)
def test_sources_without_an_extension_say_where_they_are(
    tmp_path: Path, checkout: bool, advice: str
) -> None:
    if checkout:
        (tmp_path / "setup.py").touch()
    package = Path(autodeco_ext.__file__).parent
    here = tmp_path / "autodeco_ext"
    shutil.copytree(package, here, ignore=shutil.ignore_patterns("_C.*", "__pycache__"))
    # An editable install would find the extension of the checkout that it points to.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)];"
        "import autodeco_ext"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    last = result.stderr.strip().splitlines()[-1]
    assert f"{here} holds the sources without a compiled extension" in last
    assert advice in last


@pytest.mark.slow
def test_a_missing_extension_says_what_to_type() -> None:
    # A build that cannot be loaded looks to Python like a module that is not there.
    code = "import sys; sys.modules['autodeco_ext._C'] = None; import autodeco_ext"
    last = run(code).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: autodeco_ext: the compiled extension does not load")
    assert "pip install --no-build-isolation" in last


@pytest.mark.slow
def test_an_old_torch_fails_the_import_with_a_sentence() -> None:
    code = "import torch; torch.__version__ = '2.9.1'; import autodeco_ext"
    last = run(code).stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: autodeco_ext: torch must be 2.10 or newer, got 2.9.1; upgrade torch"
    )


@pytest.mark.slow
def test_importing_is_quick_and_does_not_import_transformers() -> None:
    code = (
        "import time, sys, torch; start = time.perf_counter(); import autodeco_ext;"
        "print(time.perf_counter() - start, 'transformers' in sys.modules)"
    )
    seconds, transformers = run(code).stdout.split()
    assert float(seconds) < 2
    assert transformers == "False"

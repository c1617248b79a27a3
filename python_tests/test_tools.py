"""tools/kernel_resources.py: what it reads from the compiler's log, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
SPECIFICATION = importlib.util.spec_from_file_location(
    "kernel_resources", TOOLS / "kernel_resources.py"
)
kernel_resources = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(kernel_resources)

HALVES = "_ZN8autodeco4cuda13sample_kernelINS0_7Float16ELb1EEEvNS_15SampleArgumentsE"
FLOATS = "_ZN8autodeco4cuda20filter_logits_kernelIfLb0EEEvNS_21FilterLogitsArgumentsE"


def log_of(symbol: str, arch: str, spilled: int = 0, static_shared: int = 0) -> str:
    """What `nvcc -Xptxas -v` prints of one kernel."""
    shared = f", {static_shared} bytes smem" if static_shared else ""
    return (
        f"ptxas info    : Compiling entry function '{symbol}' for '{arch}'\n"
        f"ptxas info    : Function properties for {symbol}\n"
        f"    16 bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads\n"
        f"ptxas info    : Used 96 registers, used 1 barriers{shared}, 488 bytes cmem[0]\n"
    )


def run(tmp_path: Path, log: str, shared_memory: str = "1000 60000\n") -> int:
    (tmp_path / "build.log").write_text(log)
    (tmp_path / "shared_memory.txt").write_text(shared_memory)
    return kernel_resources.main(tmp_path / "build.log", tmp_path / "shared_memory.txt")


def test_every_kernel_gets_a_line_with_its_numbers_sorted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(HALVES, "sm_100a") + log_of(FLOATS, "sm_90a", static_shared=512)
    assert run(tmp_path, log) == 0
    said = capsys.readouterr().out.splitlines()
    table = [" ".join(line.split()) for line in said[1:3]]
    assert table[0] == "sm_90a filter_logits<float32, one block a row> 96 16 0 512"
    assert table[1] == "sm_100a sample<float16, several> 96 16 0 0"
    assert said[-1] == "kernel resources: 2 kernels, none spills, shared memory suffices"


def test_a_spill_fails_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, log_of(HALVES, "sm_90a", spilled=8) + log_of(FLOATS, "sm_90a")) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "kernel resources: sample<float16, several> on sm_90a spills 8 bytes"


def test_a_spill_of_a_function_that_a_kernel_calls_is_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = (
        "ptxas info    : Function properties for _ZN8autodeco4cuda7collectEv\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
    )
    assert run(tmp_path, log_of(HALVES, "sm_90a") + called + log_of(FLOATS, "sm_90a")) == 1
    said = capsys.readouterr().out.splitlines()
    assert " ".join(said[1].split()) == "sm_90a sample<float16, several> 96 24 16 0"
    assert said[-1] == "kernel resources: sample<float16, several> on sm_90a spills 16 bytes"


@pytest.mark.parametrize(
    ("arch", "kibibytes"), [("sm_80", 163), ("sm_86", 99), ("sm_90a", 227), ("sm_120", 99)]
)
def test_static_and_dynamic_shared_memory_together_may_fill_a_block(
    arch: str, kibibytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(HALVES, arch, static_shared=1024)
    fits = (kibibytes - 1) * 1024
    assert run(tmp_path, log, f"1000 {fits}\n") == 0
    assert run(tmp_path, log, f"1000 {fits}\n2000 {fits + 1}\n") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"needs {kibibytes * 1024 + 1} bytes of shared memory at V = 2000" in last


@pytest.mark.parametrize(
    ("log", "shared_memory"), [("", "1000 60000\n"), (log_of(HALVES, "sm_90a"), "")]
)
def test_a_log_without_kernels_or_without_shared_memory_fails(
    log: str, shared_memory: str, tmp_path: Path
) -> None:
    assert run(tmp_path, log, shared_memory) == 1

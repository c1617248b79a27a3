"""Fixtures that choose the instruction set or the device, so that a test body never branches on it.

`backend`: every instruction set, and CUDA. `cpu_backend`: the instruction sets, for what only a CPU
has. `op_device`: CPU and CUDA, for what no instruction set changes. Under these the ops called as
`autodeco_ext.sample` take and return CPU tensors on every backend (devices.py).
`device` and `cuda` are for tests that place their tensors themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from devices import OpsOnDevice, cuda_missing

import autodeco_ext

# The tests' tensors are tiny: a second thread would only wait. Tests of threads set their own.
torch.set_num_threads(1)

CPU_BACKENDS = ("scalar", "avx2", "avx512")
DEVICES = ("cpu", "cuda")
BACKENDS_RUN: set[str] = set()
COUNTS: list[str] = []  # what tests counted, for the summary of the run


def require_backend(name: str, missing: str | None) -> None:
    """Skips the test if there is a reason to.

    AUTODECO_EXPECT_BACKENDS, a list with commas, makes a missing one of them a failure.
    """
    if missing is None:
        BACKENDS_RUN.add(name)
        return
    if name in os.environ.get("AUTODECO_EXPECT_BACKENDS", "").split(","):
        pytest.fail(f"{name}: {missing}")
    pytest.skip(f"{name}: {missing}")


def torch_device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    require_backend("cuda", cuda_missing())
    return torch.device("cuda", torch.cuda.current_device())


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    supported = name in autodeco_ext.supported_cpu_isas()
    require_backend(name, None if supported else "not built or not supported by this processor")
    before = autodeco_ext.cpu_isa()
    autodeco_ext.set_cpu_isa(name)
    assert autodeco_ext.cpu_isa() == name
    yield
    autodeco_ext.set_cpu_isa(before)


def run_ops_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = OpsOnDevice(torch_device(name))
    for op in ops.NAMES:
        monkeypatch.setattr(autodeco_ext, op, ops.wrap(getattr(autodeco_ext, op)))


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(params=(*CPU_BACKENDS, "cuda"))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cuda":
        run_ops_on("cuda", monkeypatch)
        yield request.param
        return
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(params=DEVICES)
def op_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        run_ops_on("cuda", monkeypatch)
    return request.param


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch_device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    return torch_device("cuda")


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """torch's own, put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def count() -> Callable[[str], None]:
    """Adds a line to the summary of the run."""
    return COUNTS.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in COUNTS:
        terminalreporter.write_line(line)
    missing = cuda_missing()
    terminalreporter.write_line(
        f"autodeco_ext backends run: {', '.join(sorted(BACKENDS_RUN)) or 'none'}; "
        f"CUDA {'can run here' if missing is None else f'skipped: {missing}'}"
    )

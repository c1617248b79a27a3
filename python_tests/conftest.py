"""One fixture chooses the instruction set, so that a test body never branches on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import autodeco_ext

# The tests' tensors are tiny: a second thread would only wait. Tests of threads set their own.
torch.set_num_threads(1)

ALL_BACKENDS = ("scalar", "avx2", "avx512")
BACKENDS_RUN: set[str] = set()


@pytest.fixture(params=ALL_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set; a skipped one says why.

    AUTODECO_EXPECT_BACKENDS, a list with commas, makes a missing one of them a failure.
    """
    if request.param not in autodeco_ext.supported_cpu_isas():
        reason = f"{request.param} is not built or not supported by this processor"
        if request.param in os.environ.get("AUTODECO_EXPECT_BACKENDS", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    before = autodeco_ext.cpu_isa()
    autodeco_ext.set_cpu_isa(request.param)
    assert autodeco_ext.cpu_isa() == request.param
    BACKENDS_RUN.add(request.param)
    yield request.param
    autodeco_ext.set_cpu_isa(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        f"autodeco_ext backends run: {', '.join(sorted(BACKENDS_RUN)) or 'none'}; "
        f"CUDA half {autodeco_ext.build_info()['cuda_decision']}"
    )

"""Peak memory of a call on the CPU, as the operating system sees it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")


def _status(field: str) -> int:
    """Bytes that /proc/self/status gives for VmRSS or VmHWM."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    return 1024 * int(found[1])


def extra_bytes(call: Callable[[int], object]) -> int | None:
    """Most memory a call holds besides what was there, its result included.

    Resident pages, to about half a MiB: scratch of kernels and of libraries counts as tensors do,
    and memory that is reserved and never written does not. Linux resets the peak on request; where
    it does not, None. What earlier calls left to be used again counts as there: memory of torch's
    allocator is given back first, buffers that a library keeps are not.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):  # another system, another C library, a closed /proc
        return None
    call(0)
    return max(0, _status("VmHWM") - before)

"""Prints registers, spills and shared memory of every kernel from a log of `nvcc -Xptxas -v`.

    python tools/kernel_resources.py build.log shared_memory.txt

The second file has a line `vocab bytes` for each vocabulary: the dynamic shared memory of the row
kernels, from tools/shared_memory.cu. No kernel asks for more.

Fails if the log speaks of no kernel, if one spills, or if static and dynamic shared memory together
are more than a block of its architecture can have.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SIGNATURE = re.compile(r"(\w+)_kernel<(.*?)>\(")
TEMPLATE_ARGUMENTS = {
    "BFloat16": "bfloat16",
    "Float16": "float16",
    "float": "float32",
    "false": "one block a row",
    "true": "several",
}
KIB = 1024
# The most that a block can ask for, by compute capability (CUDA programming guide).
SHARED_MEMORY_LIMITS = {
    **dict.fromkeys((80, 87), 163 * KIB),
    **dict.fromkeys((86, 88, 89, 120, 121), 99 * KIB),
    **dict.fromkeys((90, 100, 103, 110), 227 * KIB),
}


class Kernel(NamedTuple):
    capability: int
    arch: str
    symbol: str
    registers: int
    stack: int
    spilled: int
    static_shared: int

    @property
    def shared_limit(self) -> int:
        return SHARED_MEMORY_LIMITS[self.capability]


def read_kernels(log: str) -> list[Kernel]:
    """The kernels that `log` speaks of, sorted, with mangled names."""
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            symbol, arch = entry.groups()
            capability = int(re.sub(r"\D", "", arch))
            kernels.append(Kernel(capability, arch, symbol, 0, 0, 0, 0))
        elif (spills := SPILLS.search(line)) and kernels:
            # Of the kernel, or below it of a function that it calls: ptxas compiles those with it.
            stack, stores, loads = map(int, spills.groups())
            last = kernels[-1]
            kernels[-1] = last._replace(
                stack=last.stack + stack, spilled=last.spilled + stores + loads
            )
        elif (registers := REGISTERS.search(line)) and kernels:
            shared = SHARED.search(line)
            kernels[-1] = kernels[-1]._replace(
                registers=int(registers[1]), static_shared=int(shared[1]) if shared else 0
            )
    return sorted(kernels)


def readable(symbols: list[str]) -> dict[str, str]:
    """`sample<bfloat16, several>` for the mangled name of each kernel."""
    command = ["c++filt", *symbols]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = {}
    for symbol, text in zip(symbols, output.splitlines(), strict=True):
        signature = SIGNATURE.search(text)
        if signature is None:
            names[symbol] = text
            continue
        arguments = (one.rsplit("::", 1)[-1] for one in signature[2].split(", "))
        arguments = (TEMPLATE_ARGUMENTS.get(one, one) for one in arguments)
        names[symbol] = f"{signature[1]}<{', '.join(arguments)}>"
    return names


def faults(kernel: Kernel, dynamic: dict[int, int]) -> list[str]:
    """What is wrong with a kernel that asks for `dynamic` bytes by vocabulary."""
    found = [f"spills {kernel.spilled} bytes"] if kernel.spilled else []
    for vocab, asked in dynamic.items():
        total = kernel.static_shared + asked
        if total > kernel.shared_limit:
            found.append(
                f"needs {total} bytes of shared memory at V = {vocab}, "
                f"{kernel.arch} has {kernel.shared_limit}"
            )
    return found


def main(log: Path, shared_memory: Path) -> int:
    kernels = read_kernels(log.read_text())
    lines = (line.split() for line in shared_memory.read_text().splitlines())
    dynamic = {int(vocab): int(asked) for vocab, asked in lines}
    names = readable([kernel.symbol for kernel in kernels])
    print(f"{'arch':8} {'kernel<element, blocks a row>':46} registers stack spilled static_smem")
    for kernel in kernels:
        print(
            f"{kernel.arch:8} {names[kernel.symbol]:46} {kernel.registers:9} {kernel.stack:5} "
            f"{kernel.spilled:7} {kernel.static_shared:11}"
        )
    for vocab, asked in dynamic.items():
        print(f"dynamic shared memory of a block at V = {vocab}: at most {asked} bytes")
    for arch, limit in sorted({(kernel.arch, kernel.shared_limit) for kernel in kernels}):
        print(f"shared memory that a block of {arch} can have: {limit} bytes")
    faulty = [
        f"{names[kernel.symbol]} on {kernel.arch} {fault}"
        for kernel in kernels
        for fault in faults(kernel, dynamic)
    ]
    if not kernels or not dynamic:
        faulty.append("no kernel in the log" if not kernels else "no dynamic shared memory stated")
    for fault in faulty:
        print(f"kernel resources: {fault}")
    if faulty:
        return 1
    print(f"kernel resources: {len(kernels)} kernels, none spills, shared memory suffices")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: kernel_resources.py BUILD_LOG SHARED_MEMORY")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

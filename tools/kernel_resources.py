"""Prints registers, spills and shared memory of every kernel from a log of `nvcc -Xptxas -v`.

Fails if a kernel spills or if the log speaks of none.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
KERNEL = re.compile(r"([a-z_]+)_kernelI(.*?)Lb([01])E")
# In this order: the second is part of the first, and the third of any.
ELEMENTS = {"BFloat16": "bfloat16", "Float16": "float16", "f": "float32"}


def readable(symbol: str) -> str:
    """`sample<bfloat16, team>` from the mangled name; without `team`, one block a row."""
    match = KERNEL.search(symbol)
    if match is None:
        return symbol
    element = next(name for key, name in ELEMENTS.items() if key in match[2])
    return f"{match[1]}<{element}{', team' if match[3] == '1' else ''}>"


def main(log: Path) -> int:
    symbol = arch = ""
    stack = stores = loads = 0
    rows = []
    for line in log.read_text().splitlines():
        if entry := ENTRY.search(line):
            symbol, arch = entry.groups()
        elif spills := SPILLS.search(line):
            stack, stores, loads = map(int, spills.groups())
        elif (registers := REGISTERS.search(line)) and symbol:
            shared = SHARED.search(line)
            static = int(shared[1]) if shared else 0
            rows.append((arch, readable(symbol), int(registers[1]), stack, stores + loads, static))
            symbol = ""
    print(f"{'arch':8} {'kernel<element[, team]>':40} registers stack spilled static_smem")
    for arch, name, registers, stack, spilled, shared in sorted(rows):
        print(f"{arch:8} {name:40} {registers:9} {stack:5} {spilled:7} {shared:11}")
    spilling = [name for _, name, _, _, spilled, _ in rows if spilled]
    if not rows or spilling:
        print(f"kernel resources: {'no kernel in the log' if not rows else f'spills: {spilling}'}")
        return 1
    print(f"kernel resources: {len(rows)} kernels, none spills")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Microbenchmarks.

python -m bench cpu      every op on the CPU against its peers
python -m bench full     the results of a CPU that bench/results holds, with tables and charts
python -m bench calls    what one call costs, besides the row
python -m bench gpu      build, test, sanitize and measure on a machine with an NVIDIA GPU
python -m bench plot     charts and a table of a result file
python -m bench readme   the two tables of the README, from bench/results

Each has --help. docs/benchmarks.md says how to read the results.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("cpu", "full", "calls", "gpu", "plot", "readme")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(
            f"bench: the command must be one of {', '.join(COMMANDS)}, got {command!r}",
            file=sys.stderr,
        )
        return 2
    return importlib.import_module(f"bench.{command}").main(rest)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

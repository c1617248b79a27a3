"""Fails if a kernel folder includes torch or Python, or if a layer includes the one above it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
FORBIDDEN = {
    "include": re.compile(r"torch|ATen|c10|Python\.h|pybind11|\.\./(cpu|cuda|ops|python)/"),
    "cpu": re.compile(r"torch|ATen|c10|Python\.h|pybind11|\.\./(cuda|ops|python)/"),
    "cuda": re.compile(
        r"torch|ATen|c10|Python\.h|pybind11|cub/|curand|cooperative_groups|\.\./(cpu|ops|python)/"
    ),
    "ops": re.compile(r"Python\.h|pybind11|\.\./python/"),
}


def main() -> int:
    problems = []
    for folder, forbidden in FORBIDDEN.items():
        for path in sorted((CSRC / folder).rglob("*.*")):
            for header in INCLUDE.findall(path.read_text()):
                if forbidden.search(header):
                    problems.append(f"{path.relative_to(CSRC.parent)} includes {header}")
    print("\n".join(problems) or "layers: every include points downwards")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

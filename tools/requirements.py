"""Prints the package's dependencies and those of the named extras, without torch: one per line.

torch is left out because tools/install_torch.py has chosen its build already.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TABLE = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()


def requirements(key: str) -> list[str]:
    """The strings of the list `key = [...]`; tomllib is not in Python 3.10."""
    match = re.search(rf"^{key} = \[(.*?)\]$", TABLE, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SystemExit(f"pyproject.toml has no list named {key}")
    return re.findall(r'"([^"]+)"', match[1])


if __name__ == "__main__":
    found = {item for key in ["dependencies", *sys.argv[1:]] for item in requirements(key)}
    print(*sorted(item for item in found if not item.startswith("torch>")), sep="\n")

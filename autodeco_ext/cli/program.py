"""How this program is called, for commands that are printed to be typed again."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def to_type(words: Sequence[str]) -> str:
    """The command line that runs this program with these arguments from the current folder."""
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    running = Path(sys.argv[0])
    if running.parts[-2:] == ("autodeco_ext", "__main__.py"):  # python -m autodeco_ext
        return [_from_here(Path(sys.executable)), "-m", "autodeco_ext"]
    if running.stem != "autodeco":  # called from Python
        return ["autodeco"]
    found = shutil.which("autodeco")
    # Without the suffix: Windows starts autodeco.exe and says autodeco.
    if found is not None and _bare(Path(found)) == _bare(running):
        return ["autodeco"]
    return [_from_here(running)]


def _bare(path: Path) -> Path:
    return path.resolve().with_suffix("")


def _from_here(path: Path) -> str:
    """Relative if it lies in the current folder, else absolute; links are not followed."""
    absolute = Path(os.path.abspath(path))
    if not absolute.is_relative_to(Path.cwd()):
        return str(absolute)
    relative = str(absolute.relative_to(Path.cwd()))
    # A shell takes a name without a separator for a command to look up.
    return relative if os.sep in relative else os.path.join(".", relative)

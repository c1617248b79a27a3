"""Values on the command line: parsed, checked, and refused in one sentence."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import NoReturn

from autodeco_ext.cli.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that keeps line breaks in help texts and answers bad input with one sentence."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def positive_int(text: str) -> int:
    """A whole number >= 1."""
    return _whole(text, 1)


def seed(text: str) -> int:
    """A whole number in 0 .. 2^31 - 1."""
    return _whole(text, 0, 2**31 - 1)


def temperature(text: str) -> float:
    """A finite number >= 0."""
    return _real(text, 0.0, math.inf, "a finite number >= 0")


def share(text: str) -> float:
    """A number in [0, 1]."""
    return _real(text, 0.0, 1.0, "a number in [0, 1]")


def learning_rate(text: str) -> float:
    """A finite number > 0."""
    value = _real(text, 0.0, math.inf, "a finite number > 0")
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be a finite number > 0, got {text!r}")
    return value


def nonempty(text: str) -> str:
    """A text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must not be empty, got {text!r}")
    return text


def path(text: str) -> Path:
    """A path that is not empty; an empty one would be the current folder."""
    return Path(nonempty(text))


def existing_file(text: str) -> Path:
    """A file that is there."""
    file = path(text)
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"must be an existing file, got {text!r}")
    return file


def check_output_folder(output: Path) -> None:
    """Refuse --output, before any work, if it is no folder and cannot become one."""
    there = output
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--output must be a folder, got the file {there}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--output must be in a folder that can be written to, got {there}")


def check_output_file(option: str, file: Path) -> None:
    """Refuse, before any work, a file that cannot be written."""
    if file.is_dir():
        raise UserError(f"{option} must be a file, got the folder {file}")
    if not file.parent.is_dir():
        raise UserError(f"{option} must be in an existing folder, got {file}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{option} must be a file that can be written, got {file}")


def _whole(text: str, low: int, high: int | None = None) -> int:
    requirement = (
        f"must be a whole number >= {low}"
        if high is None
        else f"must be a whole number in {low} .. {high}"
    )
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < low or (high is not None and value > high):
        raise argparse.ArgumentTypeError(f"{requirement}, got {text!r}")
    return value


def _real(text: str, low: float, high: float, requirement: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and low <= value <= high):
        raise argparse.ArgumentTypeError(f"must be {requirement}, got {text!r}")
    return value

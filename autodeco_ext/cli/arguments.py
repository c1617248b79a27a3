"""Values on the command line: parsed, checked, and refused in one sentence."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn


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


def existing_file(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"must be an existing file, got {text!r}")
    return path


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

"""Options that say which cases to run, shared by the CPU and GPU programs."""

from __future__ import annotations

import argparse
import itertools

from bench import cases
from bench.rows import DISTRIBUTIONS, DTYPES
from bench.runner import Shape


def add_case_options(
    parser: argparse.ArgumentParser, rows: list[int], vocab: list[int], dtype: list[str]
) -> None:
    parser.add_argument("--op", nargs="+", choices=cases.NAMES, default=list(cases.NAMES))
    parser.add_argument("--rows", nargs="+", type=int, default=rows)
    parser.add_argument("--vocab", nargs="+", type=int, default=vocab)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=dtype)
    parser.add_argument(
        "--distribution", nargs="+", choices=DISTRIBUTIONS, default=list(DISTRIBUTIONS)
    )


def coverage(wanted: list[Shape]) -> str:
    """`6 cases: op sample; distribution peaked, gaussian; rows 1, 8, 64; ...`."""
    values = (
        f"{field} {', '.join(map(str, dict.fromkeys(getattr(shape, field) for shape in wanted)))}"
        for field in Shape._fields
    )
    return f"{len(wanted)} case{'s' if len(wanted) > 1 else ''}: {'; '.join(values)}"


def shapes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Shape]:
    """Every combination that the options name."""
    if min(*options.rows, *options.vocab) < 1 or options.seconds <= 0:
        parser.error("--rows, --vocab and --seconds must be positive")
    names = itertools.product(
        options.vocab, options.rows, options.distribution, options.dtype, options.op
    )
    return [
        Shape(op, distribution, rows, vocab, dtype)
        for vocab, rows, distribution, dtype, op in names
        if cases.has_distribution(op, distribution)
    ]

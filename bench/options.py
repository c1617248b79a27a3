"""Options that say which cases to run, shared by the CPU and GPU programs."""

from __future__ import annotations

import argparse
import itertools

from bench import cases
from bench.rows import DISTRIBUTIONS, DTYPES, FIXED_PARAMETERS
from bench.runner import Shape


def add_case_options(
    parser: argparse.ArgumentParser, rows: list[int], vocab: list[int], dtype: list[str]
) -> None:
    def add(name: str, help: str, default: list, **known: object) -> None:
        parser.add_argument(
            f"--{name}", nargs="+", default=default, metavar=name.upper(), help=help, **known
        )

    def defaults(values: list) -> str:
        return f"(default: {' '.join(map(str, values))})"

    add("op", f"of {', '.join(cases.NAMES)} (default: all)", list(cases.NAMES), choices=cases.NAMES)
    add("rows", f"of a call {defaults(rows)}", rows, type=int)
    add("vocab", f"logits of a row {defaults(vocab)}", vocab, type=int)
    add("dtype", f"of {', '.join(DTYPES)} {defaults(dtype)}", dtype, choices=DTYPES)
    add(
        "distribution",
        f"of {', '.join(DISTRIBUTIONS)} (default: these), or peaked rows that all have one T and "
        f"P: {', '.join(FIXED_PARAMETERS)}",
        list(DISTRIBUTIONS),
        choices=(*DISTRIBUTIONS, *FIXED_PARAMETERS),
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


def require_cases(
    parser: argparse.ArgumentParser, options: argparse.Namespace, wanted: list[Shape]
) -> None:
    """Ends the program with a sentence where no op knows any of the distributions."""
    if not wanted:
        parser.error(
            f"no case: --op {' '.join(options.op)} has no --distribution of "
            f"{', '.join(options.distribution)}"
        )

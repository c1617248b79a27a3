"""The two tables of the README, from bench/results: what is printed belongs under «Speed».

python -m bench readme

A test compares them with the README, so that no number there outlives the result it is from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.cases import FLOOR, OURS
from bench.table import duration

RESULTS = Path(__file__).resolve().parent / "results"
_PEERS = {
    "pure torch (sort)": "torch sort",
    "pure torch (top-k window)": "torch topk",
    "the same compiled": "torch topk compiled",
    "Hugging Face": "hugging face",
    "llama.cpp": "llama.cpp",
}
# What stands in the column of torch's sort where nothing is sorted.
_INSTEAD = {("distribution_stats", "torch sort"): "pure torch"}
_TRAINING = (
    ("`autodeco_loss`, 64 peaked rows", "cpu-loss-64", "peaked", 64),
    ("`autodeco_loss`, 64 rows of Gaussian logits", "cpu-loss-64", "gaussian", 64),
    ("`linear_autodeco_loss`, 256 tokens, H = 1024", "cpu-linear-loss", "gaussian5", 256),
    (
        "a step of training the heads, 256 tokens of a 0.5B base, without its forward",
        "cpu-head-training",
        "gaussian5",
        256,
    ),
)


def _case(name: str, **fixed: object) -> dict[str, dict]:
    """The records of one case of a result, by provider."""
    records = json.loads((RESULTS / f"{name}.json").read_text())["records"]
    return {r["provider"]: r for r in records if all(r[key] == fixed[key] for key in fixed)}


def _time(record: dict) -> str:
    return duration(record["microseconds"]["median"])


def _ratio(record: dict, other: dict) -> str:
    """How many times as long as the other one takes."""
    ratio = record["microseconds"]["median"] / other["microseconds"]["median"]
    digits = 2 if ratio < 2 else 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f} x"


def _beside(peer: dict | None, ours: dict) -> str:
    if peer is None:
        return "–"
    if "microseconds" not in peer:
        return peer["check"]
    return f"{_time(peer)} ({_ratio(peer, ours)})"


def _megabytes(record: dict) -> str:
    return f"{record['extra_bytes'] / 1e6:.0f} MB"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def sampling() -> str:
    """Eight peaked rows of every op that keeps a nucleus or reads the whole row."""
    cases = {
        op: _case("cpu", op=op, rows=8, distribution="peaked", dtype="float32")
        for op in ("sample", "filter_logits", "kept_indices", "distribution_stats")
    }

    def peer(op: str, name: str) -> dict | None:
        return cases[op].get(_INSTEAD.get((op, name), name))

    # A peer without a time in these results has no column.
    peers = {
        title: name
        for title, name in _PEERS.items()
        if any("microseconds" in (peer(op, name) or {}) for op in cases)
    }
    head = ("op", OURS, "floor: one read for maximum and sum of exponentials", *peers)
    lines = [_row(*head), _row(*["---"] * len(head)).replace(" ", "")]
    for op, records in cases.items():
        ours, floor = records[OURS], records[FLOOR]
        cells = (_beside(peer(op, name), ours) for name in peers.values())
        lines.append(
            _row(f"`{op}`", _time(ours), f"{_time(floor)} ({_ratio(ours, floor)})", *cells)
        )
    return "\n".join(lines)


def training() -> str:
    """The losses beside the released formula, and a step of training the heads."""
    head = ("what", OURS, "memory", "floor", "released formula", "its memory")
    lines = [_row(*head), _row(*["---"] * len(head)).replace(" ", "")]
    for what, name, distribution, rows in _TRAINING:
        records = _case(name, distribution=distribution, rows=rows)
        ours, floor, peer = records[OURS], records[FLOOR], records["released"]
        beside = f"{_time(floor)} ({_ratio(ours, floor)})"
        peer_cells = (_beside(peer, ours), _megabytes(peer) if "extra_bytes" in peer else "–")
        lines.append(_row(what, _time(ours), _megabytes(ours), beside, *peer_cells))
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    print(f"{sampling()}\n\n{training()}")
    return 0

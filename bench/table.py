"""A result as Markdown: one table per op, a column per provider."""

from __future__ import annotations

from bench.cases import OURS
from bench.summary import error, kept, shape_of

_HEAD = (
    "Median time of one call (20th to 80th percentile for ours); in brackets how many times as "
    "long as ours; then, where measured, the most memory it holds besides its input, and its "
    "largest error, and how many tokens a row keeps in the mean. GB/s and the fraction of the "
    "floor's speed are ours."
)
_HEAD_ON_CUDA = (
    "A time is that of a call inside the replay of a CUDA graph, the device alone; where it is "
    "marked «eager», that of a call from Python, because no graph could hold it. Our own time from "
    "Python is «call», and what an eager one is also compared with."
)


def markdown(result: dict) -> str:
    """Head with machine and command, then the tables."""
    facts = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    records = result["records"]
    head = f"{_HEAD} {_HEAD_ON_CUDA}" if any("graph" in record for record in records) else _HEAD
    parts = [f"{facts}\n\n`{result['command']}`\n", f"{head}\n"]
    for op in dict.fromkeys(record["op"] for record in records):
        parts.append(_op_table(op, [record for record in records if record["op"] == op]))
    return "\n".join(parts)


def _op_table(op: str, records: list[dict]) -> str:
    providers = list(dict.fromkeys(record["provider"] for record in records))
    head = ["rows", "V", "dtype", "distribution", "GB/s", "of floor", *providers]
    lines = [f"## {op}", "", _row(head), _row(["---"] * len(head))]
    for shape in dict.fromkeys(shape_of(record) for record in records):
        cells = {r["provider"]: r for r in records if shape_of(r) == shape}
        ours = cells.get(OURS, {})
        speed = f"{ours['gigabytes_per_second']:.1f}" if "gigabytes_per_second" in ours else ""
        floor = f"{ours['fraction_of_floor']:.0%}" if "fraction_of_floor" in ours else ""
        shape_cells = [str(shape.rows), str(shape.vocab), shape.dtype, shape.distribution]
        columns = [_cell(cells.get(provider), ours) for provider in providers]
        lines.append(_row([*shape_cells, speed, floor, *columns]))
    return "\n".join([*lines, ""])


def _cell(record: dict | None, ours: dict) -> str:
    if record is None:
        return ""
    time = record.get("microseconds")
    if time is None:
        return record["check"] + (f", {error(record)}" if "errors" in record else "")
    parts = [duration(time["median"]) + (" eager" if _is_eager(record) else "")]
    ratio = record.get("ratio_to_autodeco_ext")
    if record["provider"] == OURS:
        low, high = duration(time["percentile_20"]), duration(time["percentile_80"])
        parts = [f"**{parts[0]}** ({low} to {high})"]
        if "graph" in record and not _is_eager(record):
            parts.append(f"call {duration(record['call_microseconds']['median'])}")
    elif ratio is not None:
        over_call = ""
        if _is_eager(record) and not _is_eager(ours):
            call = ours["call_microseconds"]["median"]
            over_call = f", {time['median'] / call:.1f} x call"
        parts = [f"{parts[0]} ({ratio:.1f} x{over_call})"]
    if "extra_bytes" in record:
        parts.append(f"{record['extra_bytes'] / 1e6:.1f} MB")
    if "errors" in record:
        parts.append(error(record))
    if "kept_tokens" in record:
        parts.append(kept(record))
    return ", ".join(parts)


def _is_eager(record: dict) -> bool:
    """Whether the time is that of a call from Python in the place of one inside a CUDA graph."""
    return record.get("graph", "yes") != "yes"


def duration(microseconds: float) -> str:
    """«12.3 us», «4.56 ms» or «7.89 s»."""
    if microseconds < 1e3:
        return f"{microseconds:.1f} us"
    if microseconds < 1e6:
        return f"{microseconds / 1e3:.2f} ms"
    return f"{microseconds / 1e6:.2f} s"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"

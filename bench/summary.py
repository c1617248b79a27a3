"""What follows from the times of a result: ratios, bandwidth, and the line of one record."""

from __future__ import annotations

from bench.cases import FLOOR, OURS
from bench.runner import FAIL, Shape

_SHAPE = Shape._fields


def shape_of(record: dict) -> Shape:
    return Shape(*(record[field] for field in _SHAPE))


def median(record: dict | None) -> float | None:
    """Microseconds, or None for a provider that was not timed."""
    return record["microseconds"]["median"] if record and "microseconds" in record else None


def with_ratios(records: list[dict]) -> list[dict]:
    """Adds what is derived from the times of the same case, run and machine.

    ratio_to_autodeco_ext: how many times as long this provider takes.
    fraction_of_floor: time of the floor over time of this provider; 1 is the floor's speed.
    ns_per_element; gigabytes_per_second: bytes of the logits, counted once, over the time.
    """
    times = {(shape_of(r), r["provider"]): median(r) for r in records}
    result = []
    for record in records:
        time = median(record)
        derived: dict[str, float] = {}
        if time is not None:
            shape = shape_of(record)
            derived["ns_per_element"] = 1e3 * time / (shape.rows * shape.vocab)
            derived["gigabytes_per_second"] = shape.logits_bytes / time / 1e3
            ours, floor = times.get((shape, OURS)), times.get((shape, FLOOR))
            if ours is not None:
                derived["ratio_to_autodeco_ext"] = time / ours
            if floor is not None:
                derived["fraction_of_floor"] = floor / time
        result.append({**record, **derived})
    return result


def error(record: dict) -> str:
    """The largest of the quantities of a record that has `errors`."""
    return f"error {max(record['errors'].values()):.0e}"


def kept(record: dict) -> str:
    """How many tokens a row keeps, in the mean."""
    return f"{record['kept_tokens']:.0f} kept"


def line(record: dict) -> str:
    """One row of the table that a run prints."""
    head = (
        f"{record['op']:<21}{record['distribution']:<10}{record['rows']:>5}{record['vocab']:>8} "
        f"{record['dtype']:<9}{record['provider']:<24}"
    )
    time = record.get("microseconds")
    if time is None:
        return head + record["check"] + (f", {error(record)}" if "errors" in record else "")
    spread = f"{time['percentile_20']:.1f}..{time['percentile_80']:.1f}"
    parts = [f"{time['median']:>10.1f} us ({spread:>19})"]
    if "call_microseconds" in record:
        parts.append(f"call {record['call_microseconds']['median']:>9.1f} us")
    parts.append(f"{record['gigabytes_per_second']:>7.1f} GB/s")
    for field, text in (
        ("fraction_of_floor", "{:>5.0%} of floor"),
        ("ratio_to_autodeco_ext", "{:>7.1f} x ours"),
    ):
        if field in record:
            parts.append(text.format(record[field]))
    if "extra_bytes" in record:
        parts.append(f"{record['extra_bytes'] / 1e6:>8.1f} MB")
    if "errors" in record:
        parts.append(error(record))
    if "kept_tokens" in record:
        parts.append(kept(record))
    return head + " ".join(parts)


def failed(records: list[dict]) -> bool:
    """Whether one of our own results was wrong or missing: a peer's fault is only shown."""
    return any(
        r["check"] == FAIL or r["check"].startswith("ERROR")
        for r in records
        if r["provider"] in (OURS, FLOOR)
    )

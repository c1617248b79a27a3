"""Draws the charts of results with matplotlib: one function per chart, one panel per op."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from bench.cases import FLOOR, OURS
from bench.rows import FIXED_PARAMETERS, GOAL_VOCAB
from bench.runner import FAIL
from bench.summary import median

# Without grey, which is the floor's; more providers than colors take them again, in another dash.
_COLORS = [color for i, color in enumerate(pyplot.get_cmap("tab10").colors) if i != 7]
_DASHES = ("-", "-.", ":")
_MARKERS = ("o", "s", "^")
_HATCHES = ("", "//", "..")
_GOAL_ROWS = {"cpu": 1, "gpu": 64}


class Panels:
    """A figure with one panel per op, a legend to their right and a caption below.

    Panels of many bars, each with its number, are wider and fewer in a line.
    """

    def __init__(self, ops: Iterable[str], providers: Iterable[str], bars: int = 0) -> None:
        self.ops = list(ops)
        self._providers = list(providers)
        width = max(5.0, 1.0 + 0.12 * bars)  # inches: a bar is as wide as its number is high
        in_a_line = 2 if width > 5 else 3 if len(self.ops) <= 3 else math.ceil(len(self.ops) / 2)
        columns = min(len(self.ops), in_a_line)
        lines = math.ceil(len(self.ops) / columns)
        self.figure: Figure
        self.figure, axes = pyplot.subplots(
            lines,
            columns,
            figsize=(width * columns + 2.4, 4.0 * lines + 0.4),
            squeeze=False,
            layout="constrained",
        )
        for unused in axes.flat[len(self.ops) :]:
            unused.set_axis_off()
        self.axes: dict[str, Axes] = dict(zip(self.ops, axes.flat, strict=False))

    def style(self, provider: str) -> dict[str, Any]:
        """The same in every chart of a result: ours thick and black, the floor grey and dashed."""
        if provider == OURS:
            return {"color": "black", "linewidth": 2.5, "marker": "o", "zorder": 5}
        if provider == FLOOR:
            # On top, because it may have the very points of ours.
            return {"color": "grey", "linestyle": "--", "marker": ".", "zorder": 6}
        again, color = divmod(self._place(provider), len(_COLORS))
        return {"color": _COLORS[color], "linestyle": _DASHES[again], "marker": "."}

    def bar_style(self, provider: str) -> dict[str, Any]:
        """A peer's, in the color of its lines."""
        again, color = divmod(self._place(provider), len(_COLORS))
        return {"color": _COLORS[color], "hatch": _HATCHES[again], "edgecolor": "white"}

    def _place(self, provider: str) -> int:
        return [name for name in self._providers if name not in (OURS, FLOOR)].index(provider)

    def finish(self, title: str, caption: str) -> Figure:
        handles: dict[str, Any] = {}
        for axes in self.axes.values():
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            order = [name for name in self._providers if name in handles]
            order += [name for name in handles if name not in order]
            self.figure.legend(
                [handles[name] for name in order], order, loc="outside right upper", frameon=False
            )
        self.figure.suptitle(title, x=0.01, ha="left")  # the legend is on the right
        self.figure.supxlabel(caption, fontsize=8, color="dimgrey")
        return self.figure


def _timed(records: list[dict], **fixed: object) -> list[dict]:
    return [
        record
        for record in records
        if median(record) is not None and all(record[key] == fixed[key] for key in fixed)
    ]


def _usual(records: list[dict], key: str, preferred: object) -> Any:
    """The preferred value if any record has it, or else the one that most have, the largest."""
    counts = Counter(record[key] for record in records)
    return preferred if preferred in counts else max(counts, key=lambda one: (counts[one], one))


def _of_one_distribution(result: dict) -> tuple[list[dict], str]:
    """Timed records of the peaked rows, or else of the distribution that most records have."""
    timed = _timed(result["records"])
    distribution = _usual(timed, "distribution", "peaked")
    return _timed(timed, distribution=distribution), distribution


def _ticks(axis, values: Iterable[float], text: Callable[[float], str] = str) -> None:
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def _log_scale(axes: Axes, label: str, unit: str = "") -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 3 * low:  # where a power of ten or twice it may not lie between
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def _lines(
    panels: Panels, op: str, records: list[dict], key: str, value: Callable[[dict], float]
) -> None:
    for provider in dict.fromkeys(record["provider"] for record in records):
        points = sorted((r[key], value(r)) for r in records if r["provider"] == provider)
        panels.axes[op].plot(*zip(*points, strict=True), label=provider, **panels.style(provider))


def _vocab_axis(axes: Axes, records: list[dict]) -> None:
    axes.set_xlabel("vocabulary, thousands")
    _ticks(axes.xaxis, (r["vocab"] for r in records), lambda value: f"{value / 1000:.0f}")


def _rows_axis(axes: Axes, records: list[dict]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("rows of a call")
    _ticks(axes.xaxis, (r["rows"] for r in records), lambda value: f"{value:g}")


def _usual_rows(result: dict, records: list[dict]) -> int:
    return _usual(records, "rows", _GOAL_ROWS["gpu" if "gpu" in result["machine"] else "cpu"])


def _usual_dtype(result: dict, records: list[dict]) -> str:
    return _usual(records, "dtype", "bfloat16" if "gpu" in result["machine"] else "float32")


def latency(result: dict, panels: Panels, caption: str) -> Figure:
    """Time of a call by vocabulary, at one number of rows."""
    chosen, distribution = _of_one_distribution(result)
    dtype = _usual_dtype(result, chosen)
    rows = _usual_rows(result, chosen)
    for op, axes in panels.axes.items():
        records = _timed(chosen, op=op, dtype=dtype, rows=rows)
        _lines(panels, op, records, "vocab", median)
        axes.set_title(op)
        _vocab_axis(axes, records)
        _log_scale(axes, "microseconds a call")
    return panels.finish(f"Time of a call: {_rows(rows)}, {dtype}, {distribution}", caption)


def scaling(result: dict, panels: Panels, caption: str) -> Figure:
    """Time of a row by the number of rows, at one vocabulary."""
    chosen, distribution = _of_one_distribution(result)
    dtype = _usual_dtype(result, chosen)
    vocab = _usual(chosen, "vocab", GOAL_VOCAB)
    for op, axes in panels.axes.items():
        records = _timed(chosen, op=op, dtype=dtype, vocab=vocab)
        _lines(panels, op, records, "rows", lambda record: median(record) / record["rows"])
        axes.set_title(op)
        _rows_axis(axes, records)
        _log_scale(axes, "microseconds a row")
    return panels.finish(f"Time of a row: V = {vocab}, {dtype}, {distribution}", caption)


def memory(result: dict, panels: Panels, caption: str) -> Figure:
    """Most memory a call holds besides its input, by the number of rows, at one vocabulary."""
    chosen, distribution = _of_one_distribution(result)
    measured = [record for record in chosen if "extra_bytes" in record]
    dtype = _usual_dtype(result, measured)
    vocab = _usual(measured, "vocab", GOAL_VOCAB)
    for op, axes in panels.axes.items():
        records = _timed(measured, op=op, dtype=dtype, vocab=vocab)
        # Less than what can be measured would have no place on the scale.
        _lines(panels, op, records, "rows", lambda record: max(record["extra_bytes"] / 1e6, 0.1))
        axes.set_title(op)
        _rows_axis(axes, records)
        _log_scale(axes, "megabytes, 0.1 or more")
    return panels.finish(f"Memory of a call: V = {vocab}, {dtype}, {distribution}", caption)


def speed_up(result: dict, panels: Panels, caption: str) -> Figure:
    """How many times as long as ours every other provider takes.

    By distribution at one dtype or, where there is one distribution alone, by dtype.
    """
    records = [r for r in _timed(result["records"]) if "ratio_to_autodeco_ext" in r]
    by_dtype = len({r["distribution"] for r in records}) == 1
    by = "dtype" if by_dtype else "distribution"
    fixed = {"vocab": _usual(records, "vocab", GOAL_VOCAB), "rows": _usual_rows(result, records)}
    if not by_dtype:
        fixed["dtype"] = _usual_dtype(result, records)
    for op, axes in panels.axes.items():
        chosen = [
            record
            for record in _timed(records, op=op, **fixed)
            if record["provider"] not in (OURS, FLOOR)
        ]
        providers = list(dict.fromkeys(r["provider"] for r in chosen))
        # Also one without a bar, because every peer failed: the panels have the same places.
        places = list(dict.fromkeys(r[by] for r in _timed(records, op=op)))
        width = min(0.3, 0.8 / max(len(providers), 1))
        for index, provider in enumerate(providers):
            bars = {r[by]: r["ratio_to_autodeco_ext"] for r in chosen if r["provider"] == provider}
            offset = (index + 0.5 - len(providers) / 2) * width
            drawn = axes.bar(
                [places.index(name) + offset for name in bars],
                [ratio - 1 for ratio in bars.values()],
                width,
                bottom=1,  # up is slower than ours, down is faster
                label=provider,
                **panels.bar_style(provider),
            )
            texts = [_short(ratio) for ratio in bars.values()]
            size = 6 if len(providers) > 3 else 8  # as wide as the bar, about
            axes.bar_label(drawn, texts, fontsize=size, rotation=90, padding=2)
            for record in result["records"]:
                of_bar = {**fixed, "op": op, "provider": provider, "check": FAIL}
                if record[by] in places and of_bar.items() <= record.items():
                    where = places.index(record[by]) + offset
                    axes.text(where, 1.1, FAIL, fontsize=size, rotation=90, ha="center")
        axes.axhline(1, color="black", linewidth=1)
        axes.margins(y=0.2)  # room for the numbers
        _log_scale(axes, "time over that of autodeco_ext", " x")
        axes.set_xticks(range(len(places)), places, fontsize=7)  # seven need the room
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_title(op)
        axes.grid(visible=False, axis="x")
    one = records[0]["distribution"] if by_dtype else fixed["dtype"]
    title = f"Speed-up: {_rows(fixed['rows'])}, V = {fixed['vocab']}, {one}"
    return panels.finish(title, caption)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def floor_fraction(result: dict, panels: Panels, caption: str) -> Figure:
    """Our speed over that of the floor, by rows; a line per distribution."""
    ours = [r for r in _timed(result["records"], provider=OURS) if "fraction_of_floor" in r]
    dtype = _usual_dtype(result, ours)
    vocab = _usual(ours, "vocab", GOAL_VOCAB)
    for op, axes in panels.axes.items():
        records = _timed(ours, op=op, dtype=dtype, vocab=vocab)
        for index, distribution in enumerate(dict.fromkeys(r["distribution"] for r in records)):
            points = sorted(
                (r["rows"], 100 * r["fraction_of_floor"])
                for r in records
                if r["distribution"] == distribution
            )
            axes.plot(
                *zip(*points, strict=True), label=distribution, marker="o", color=_COLORS[index]
            )
        axes.set_title(op)
        _rows_axis(axes, records)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_ylabel("percent of the floor's speed")
        axes.grid(alpha=0.3)
    return panels.finish(f"autodeco_ext and the floor: V = {vocab}, {dtype}", caption)


def parameters(result: dict, panels: Panels, caption: str) -> Figure:
    """Our time over that of the floor, by top_p; a bar per temperature, with the tokens kept."""
    ours = [
        {**record, **FIXED_PARAMETERS[record["distribution"]]}
        for record in _timed(result["records"], provider=OURS)
        if record["distribution"] in FIXED_PARAMETERS and "fraction_of_floor" in record
    ]
    fixed = {"dtype": _usual_dtype(result, ours), "vocab": _usual(ours, "vocab", GOAL_VOCAB)}
    fixed["rows"] = _usual_rows(result, ours)
    for op, axes in panels.axes.items():
        records = _timed(ours, op=op, **fixed)
        top_ps = sorted({record["top_p"] for record in records})
        temperatures = sorted({record["temperature"] for record in records})
        width = 0.9 / max(len(temperatures), 1)
        for index, temperature in enumerate(temperatures):
            of_one = _timed(records, temperature=temperature)
            offset = (index + 0.5 - len(temperatures) / 2) * width
            drawn = axes.bar(
                [top_ps.index(record["top_p"]) + offset for record in of_one],
                [1 / record["fraction_of_floor"] for record in of_one],
                width,
                label=f"T = {temperature:g}",
                color=_COLORS[index],
                edgecolor="white",
            )
            texts = [f"{r['kept_tokens']:.0f}" if "kept_tokens" in r else "" for r in of_one]
            axes.bar_label(drawn, texts, fontsize=7, padding=2)
        axes.axhline(1, color="grey", linestyle="--", label=FLOOR)
        axes.margins(y=0.1)  # room for the numbers
        axes.set_xticks(range(len(top_ps)), [f"{top_p:g}" for top_p in top_ps])
        axes.set_xlabel("top_p; on the bars, how many tokens a row keeps")
        axes.set_ylabel("time over that of the floor")
        axes.set_title(op)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    title = f"Peaked rows of one T and P: {_rows(fixed['rows'])}, V = {fixed['vocab']}"
    return panels.finish(f"{title}, {fixed['dtype']}", caption)


def dtypes(result: dict, panels: Panels, caption: str) -> Figure:
    """Time of ours with the other dtypes over that with float32, by vocabulary or by rows.

    A line per distribution.
    """
    ours = _timed(result["records"], provider=OURS)
    by_vocab = len({r["vocab"] for r in ours}) > 1
    key, fixed = ("vocab", "rows") if by_vocab else ("rows", "vocab")
    value = _usual_rows(result, ours) if by_vocab else ours[0]["vocab"]
    for op, axes in panels.axes.items():
        records = _timed(ours, op=op, **{fixed: value})
        times = {(r["dtype"], r["distribution"], r[key]): median(r) for r in records}
        distributions = list(dict.fromkeys(r["distribution"] for r in records))
        others = [d for d in dict.fromkeys(r["dtype"] for r in records) if d != "float32"]
        for dtype in others:
            for index, distribution in enumerate(distributions):
                points = sorted(
                    (x, time / times["float32", distribution, x])
                    for (name, of, x), time in times.items()
                    if (name, of) == (dtype, distribution) and ("float32", of, x) in times
                )
                axes.plot(
                    *zip(*points, strict=True),
                    label=f"{dtype}, {distribution}",
                    marker=_MARKERS[others.index(dtype)],
                    color=_COLORS[index],
                    linestyle=_DASHES[others.index(dtype)],
                )
        axes.axhline(1, color="black", linewidth=1)
        axes.set_title(op)
        (_vocab_axis if by_vocab else _rows_axis)(axes, records)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_ylabel("time over that with float32")
        axes.grid(alpha=0.3)
    where = _rows(value) if by_vocab else f"V = {value}"
    return panels.finish(f"autodeco_ext by dtype: {where}", caption)


def threads(results: list[dict], panels: Panels, caption: str) -> Figure:
    """Speed of ours with more threads over that with the fewest; a line per number of rows."""
    results = sorted(results, key=lambda result: result["machine"]["threads"])
    ours = [_timed(r["records"], provider=OURS, distribution="peaked") for r in results]
    dtype = _usual(ours[0], "dtype", "float32")
    vocab = _usual(ours[0], "vocab", GOAL_VOCAB)
    counts = [result["machine"]["threads"] for result in results]
    for op, axes in panels.axes.items():
        first = {r["rows"]: median(r) for r in _timed(ours[0], op=op, dtype=dtype, vocab=vocab)}
        for index, rows in enumerate(sorted(first)):
            points = [
                (count, first[rows] / median(record))
                for count, records in zip(counts, ours, strict=True)
                for record in _timed(records, op=op, dtype=dtype, vocab=vocab, rows=rows)
            ]
            axes.plot(
                *zip(*points, strict=True), label=_rows(rows), marker="o", color=_COLORS[index]
            )
        axes.plot(
            counts, [count / counts[0] for count in counts], "--", color="grey", label="linear"
        )
        axes.set_title(op)
        axes.set_xlabel("threads")
        _ticks(axes.xaxis, counts, lambda value: f"{value:g}")
        axes.set_ylabel(f"speed over {counts[0]} thread{'s' if counts[0] > 1 else ''}")
        axes.grid(alpha=0.3)
    return panels.finish(f"Threads: V = {vocab}, {dtype}, peaked", caption)

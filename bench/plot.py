"""Charts (PNG) and a table (Markdown) of result files of `python -m bench`.

python -m bench plot bench/results/cpu.json
python -m bench plot one-thread.json two-threads.json      # also the scaling with threads
python -m bench plot bench/results/cpu.json --chart latency rows
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from bench.cases import FLOOR, OURS
from bench.rows import FIXED_PARAMETERS
from bench.summary import median
from bench.table import markdown

CHARTS = ("latency", "rows", "memory", "speed-up", "floor", "dtypes", "parameters", "threads")


def write(path: Path, folder: Path, names: Collection[str] = CHARTS) -> list[Path]:
    """The table of one result file and those of the charts that it has the records for."""
    charts = _charts()
    result = json.loads(path.read_text())
    table = folder / f"{path.stem}.md"
    table.write_text(markdown(result))
    written = [table]
    timed = [record for record in result["records"] if median(record) is not None]

    def differ(field: str) -> bool:
        return len({record[field] for record in timed}) > 1  # a line needs two points

    drawings = {
        "latency": (charts.latency, differ("vocab")),
        "rows": (charts.scaling, differ("rows")),
        "memory": (charts.memory, differ("rows") and any("extra_bytes" in r for r in timed)),
        "speed-up": (charts.speed_up, any(r["provider"] not in (OURS, FLOOR) for r in timed)),
        "floor": (charts.floor_fraction, any("fraction_of_floor" in r for r in timed)),
        "dtypes": (charts.dtypes, differ("dtype")),
        "parameters": (
            charts.parameters,
            any(r["distribution"] in FIXED_PARAMETERS and "fraction_of_floor" in r for r in timed),
        ),
    }
    for name, (draw, has_records) in drawings.items():
        if has_records and name in names:
            panels = _panels(charts, result, _most_bars(timed) if name == "speed-up" else 0)
            figure = draw(result, panels, caption(result["machine"]))
            written.append(_save(figure, folder / f"{path.stem}-{name}.png"))
    return written


def write_threads(paths: list[Path], folder: Path) -> Path:
    """The scaling with threads, from results that differ in `--threads`."""
    charts = _charts()
    results = [json.loads(path.read_text()) for path in paths]
    facts = {
        key: " and ".join(dict.fromkeys(str(result["machine"].get(key)) for result in results))
        for key in results[0]["machine"]
        if key != "threads"
    }
    figure = charts.threads(results, _panels(charts, results[0]), caption(facts))
    return _save(figure, folder / f"{paths[0].stem}-threads.png")


def caption(facts: dict) -> str:
    """What a number must be quoted with, in one line."""
    words = {name: f"{name} " for name in ("driver", "cuda", "architectures", "torch", "commit")}
    words |= {"processor": "", "gpu": "", "isa": "", "threads": "threads "}
    return ", ".join(f"{words[key]}{value}" for key, value in facts.items() if key in words)


def _fault(path: Path) -> str:
    if not path.is_file():
        return "no file"
    try:
        result = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return "not JSON:"
    whole = isinstance(result, dict) and {"machine", "records"} <= result.keys()
    return "" if whole else "not a result of python -m bench:"


def _charts() -> ModuleType:
    try:
        from bench import charts
    except ModuleNotFoundError as error:
        raise SystemExit(f"bench plot: needs {error.name}: pip install '.[bench]'") from None
    return charts


def _most_bars(timed: list[dict]) -> int:
    """Of the panel with the most, if every peer was timed."""
    bars: dict[str, set[tuple[str, str]]] = {}
    for record in timed:
        if record["provider"] not in (OURS, FLOOR):
            bars.setdefault(record["op"], set()).add((record["provider"], record["distribution"]))
    return max(map(len, bars.values()), default=0)


def _panels(charts: ModuleType, result: dict, bars: int = 0):
    timed = [record for record in result["records"] if median(record) is not None]
    return charts.Panels(
        dict.fromkeys(record["op"] for record in timed),
        dict.fromkeys(record["provider"] for record in timed),
        bars,
    )


def _save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m bench plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("result", nargs="+", type=Path, help="JSON file of python -m bench")
    result.add_argument("--output", type=Path, help="folder (default: that of the first result)")
    result.add_argument("--chart", nargs="+", choices=CHARTS, default=CHARTS)
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    for path in options.result:
        fault = _fault(path)
        if fault:
            print(f"bench plot: {fault} {path}", file=sys.stderr)
            return 2
    folder = options.output or options.result[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    written = [file for path in options.result for file in write(path, folder, options.chart)]
    if len(options.result) > 1 and "threads" in options.chart:
        written.append(write_threads(options.result, folder))
    print("\n".join(f"wrote {path}" for path in written))
    return 0

"""Charts (PNG) and a table (Markdown) of result files of `python -m bench`.

python -m bench plot bench/results/cpu.json
python -m bench plot one-thread.json two-threads.json      # also the scaling with threads
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

from bench.summary import median
from bench.table import markdown


def write(path: Path, folder: Path) -> list[Path]:
    """Everything that one result file has to show, named after it."""
    charts = _charts()
    result = json.loads(path.read_text())
    table = folder / f"{path.stem}.md"
    table.write_text(markdown(result))
    written = [table]
    if not any(median(record) is not None for record in result["records"]):
        return written
    drawings = {
        "latency": charts.latency,
        "rows": charts.scaling,
        "speed-up": charts.speed_up,
        "floor": charts.floor_fraction,
    }
    if not any("fraction_of_floor" in record for record in result["records"]):
        del drawings["floor"]  # the op has no floor, or it was not asked for
    if len({record["vocab"] for record in result["records"]}) < 2:
        del drawings["latency"]  # a line needs two points
    for name, draw in drawings.items():
        figure = draw(result, _panels(charts, result), caption(result["machine"]))
        written.append(_save(figure, folder / f"{path.stem}-{name}.png"))
    return written


def write_threads(paths: list[Path], folder: Path) -> Path:
    """The scaling with threads, from results that differ in `--threads`."""
    charts = _charts()
    results = [json.loads(path.read_text()) for path in paths]
    facts = {key: value for key, value in results[0]["machine"].items() if key != "threads"}
    figure = charts.threads(results, _panels(charts, results[0]), caption(facts))
    return _save(figure, folder / f"{paths[0].stem}-threads.png")


def caption(facts: dict) -> str:
    """What a number must be quoted with, in one line."""
    names = {"processor": "", "gpu": "", "isa": "", "threads": "threads ", "l2_bytes": None}
    words = {"multiprocessors": None, "autodeco_ext": None, **names}
    return ", ".join(
        f"{words.get(key, key + ' ')}{value}"
        for key, value in facts.items()
        if words.get(key, "") is not None
    )


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


def _panels(charts: ModuleType, result: dict):
    timed = [record for record in result["records"] if median(record) is not None]
    return charts.Panels(
        dict.fromkeys(record["op"] for record in timed),
        dict.fromkeys(record["provider"] for record in timed),
    )


def _save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", nargs="+", type=Path, help="JSON file of python -m bench")
    parser.add_argument("--output", type=Path, help="folder (default: that of the first result)")
    options = parser.parse_args(arguments)
    for path in options.result:
        fault = _fault(path)
        if fault:
            print(f"bench plot: {fault} {path}", file=sys.stderr)
            return 2
    folder = options.output or options.result[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    written = [file for path in options.result for file in write(path, folder)]
    if len(options.result) > 1:
        written.append(write_threads(options.result, folder))
    print("\n".join(f"wrote {path}" for path in written))
    return 0

"""What is made of the records of a benchmark: ratios, the table, the charts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_records import SHAPE, record

from bench import __main__ as program
from bench import cases, plot, summary, table
from bench.providers import NOT_FETCHED
from bench.readme import RESULTS
from bench.runner import FAIL


@pytest.fixture
def charts():
    """The module, where there is matplotlib."""
    pytest.importorskip("matplotlib", reason="the charts need matplotlib: pip install '.[bench]'")
    from bench import charts

    return charts


def small_result() -> dict:
    peer = record("peer", 40.0, extra_bytes=12_300_000, errors={"loss": 1e-7, "gradient": 2e-5})
    records = [record(cases.OURS, 10.0), record(cases.FLOOR, 5.0), peer]
    records += [record(cases.OURS, 30.0, SHAPE._replace(rows=8, vocab=900))]
    records += [{**record("wrong", None), "check": FAIL, "errors": {"loss": 2e-3}}]
    records += [{**record("absent", None), "check": NOT_FETCHED}]
    machine = {"gpu": "a GPU", "torch": "2.11", "threads": 1, "commit": "abc"}
    return {"command": "a command", "machine": machine, "records": summary.with_ratios(records)}


def test_ratios_follow_from_the_times_of_one_case() -> None:
    ours, floor_record, peer, *_ = small_result()["records"]
    assert peer["ratio_to_autodeco_ext"] == 4.0
    assert (ours["fraction_of_floor"], floor_record["fraction_of_floor"]) == (0.5, 1.0)
    assert ours["gigabytes_per_second"] == pytest.approx(3 * 500 * 4 / 10e-6 / 1e9)


def test_the_table_has_times_ratios_failures_and_missing_peers() -> None:
    text = table.markdown(small_result())
    head = "| rows | V | dtype | distribution | GB/s | of floor | autodeco_ext | floor | peer |"
    assert head in text
    assert "| **10.0 us** (9.0 us to 11.0 us) | 5.0 us (0.5 x) |" in text
    assert "| 40.0 us (4.0 x), 12.3 MB, error 2e-05 |" in text
    assert summary.line(small_result()["records"][2]).endswith("    12.3 MB error 2e-05")
    assert f"| {FAIL}, error 2e-03 | {NOT_FETCHED} |" in text
    assert "a GPU" in text and "commit abc" in text


def test_a_time_without_a_graph_is_marked_and_compared_with_our_call() -> None:
    def on_cuda(provider: str, time: float, call: float, graph: str = "yes") -> dict:
        return record(provider, time, graph=graph, call_microseconds={"median": call})

    records = [on_cuda(cases.OURS, 10.0, 20.0), on_cuda("captured", 30.0, 35.0)]
    records += [on_cuda("waits", 80.0, 80.0, "none: it waits for the device")]
    result = {**small_result(), "records": summary.with_ratios(records)}
    text = table.markdown(result)
    assert "| **10.0 us** (9.0 us to 11.0 us), call 20.0 us | 30.0 us (3.0 x) |" in text
    assert "| 80.0 us eager (8.0 x, 4.0 x call) |" in text
    assert "marked «eager»" in text
    # A call of ours that no graph holds is what the others are compared with already.
    records[0] = on_cuda(cases.OURS, 20.0, 20.0, "none: it waits for the device")
    text = table.markdown({**result, "records": summary.with_ratios(records)})
    assert "| **20.0 us eager** (18.0 us to 22.0 us) |" in text
    assert "| 80.0 us eager (4.0 x) |" in text


def test_the_committed_tables_are_those_of_their_results() -> None:
    paths = [path for path in RESULTS.glob("*.json") if path.with_suffix(".md").exists()]
    assert paths
    for path in paths:
        result = json.loads(path.read_text())
        assert path.with_suffix(".md").read_text() == table.markdown(result), path.name


def test_a_duration_has_the_unit_that_keeps_it_short() -> None:
    found = [
        table.duration(microseconds) for microseconds in (12.34, 999.94, 45_678.0, 5_041_752.0)
    ]
    assert found == ["12.3 us", "999.9 us", "45.68 ms", "5.04 s"]


@pytest.mark.slow
def test_charts_are_written(tmp_path: Path, charts) -> None:
    one, two = small_result(), small_result()
    two["machine"]["threads"] = 2
    for name, result in (("one", one), ("two", two)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    one, two = str(tmp_path / "one.json"), str(tmp_path / "two.json")
    output = ["--output", str(tmp_path / "out")]
    assert program.main(["plot", one, *output]) == 0
    assert program.main(["plot", one, two, *output, "--chart", "threads"]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    names = ("latency", "rows", "memory", "speed-up", "floor", "threads")
    charts = {f"one-{name}.png" for name in names}
    assert {"one.md", *charts} <= written
    for chart in charts:
        assert (tmp_path / "out" / chart).read_bytes().startswith(b"\x89PNG")


def test_a_chart_can_be_chosen(tmp_path: Path, charts) -> None:
    records = [
        record(cases.OURS, 5.0, SHAPE._replace(dtype=dtype, vocab=vocab))
        for dtype in ("float32", "bfloat16")
        for vocab in (500, 900)
    ]
    result = {**small_result(), "records": summary.with_ratios(records)}
    (tmp_path / "one.json").write_text(json.dumps(result))
    # No peer was timed, so that there is no speed-up to draw.
    assert program.main(["plot", str(tmp_path / "one.json"), "--chart", "dtypes", "speed-up"]) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["one-dtypes.png", "one.json", "one.md"]


def test_a_dtype_without_float32_beside_it_has_no_line(charts) -> None:
    half = SHAPE._replace(dtype="float16")
    records = [
        record(cases.OURS, 5.0, SHAPE),
        record(cases.OURS, 4.0, half),
        record(cases.OURS, 4.0, half._replace(rows=9)),  # that of float32 failed its check
    ]
    figure = charts.dtypes(
        {**small_result(), "records": records}, charts.Panels(["sample"], []), ""
    )
    (line,) = [line for line in figure.axes[0].lines if line.get_label().startswith("float16")]
    assert line.get_xydata().tolist() == [[SHAPE.rows, 0.8]]


def test_peers_of_one_distribution_are_compared_by_dtype(charts) -> None:
    records = [
        record(provider, time, SHAPE._replace(dtype=dtype))
        for dtype in ("float32", "float16")
        for provider, time in ((cases.OURS, 5.0), ("peer", 10.0))
    ]
    result = {**small_result(), "records": summary.with_ratios(records)}
    panels = charts.Panels(["sample"], [cases.OURS, "peer"])
    (axes,) = charts.speed_up(result, panels, "").axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["float32", "float16"]


def test_a_bar_is_the_time_over_the_floor_and_says_what_is_kept(charts) -> None:
    records = []
    for name, time, kept in (("T1-P0.9", 20.0, 7), ("T1.5-P0.9", 40.0, 300), ("T1-P0.3", 5.0, 1)):
        shape = SHAPE._replace(distribution=name)
        records += [record(cases.OURS, time, shape, kept_tokens=kept)]
        records += [record(cases.FLOOR, 5.0, shape)]
    result = {**small_result(), "records": summary.with_ratios(records)}
    (axes,) = charts.parameters(result, charts.Panels(["sample"], []), "").axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.3", "0.9"]
    heights = {bars.get_label(): bars.datavalues.tolist() for bars in axes.containers}
    assert heights == {"T = 1": [4.0, 1.0], "T = 1.5": [8.0]}
    assert [text.get_text() for text in axes.texts] == ["7", "1", "300"]


def test_a_peer_that_failed_has_its_failure_in_the_place_of_a_bar(charts) -> None:
    wrong = SHAPE._replace(distribution="tied")
    records = [record(cases.OURS), record("peer", 40.0), record(cases.OURS, 10.0, wrong)]
    records += [{**record("peer", None, wrong), "check": FAIL}]
    result = {**small_result(), "records": summary.with_ratios(records)}
    (axes,) = charts.speed_up(result, charts.Panels(["sample"], ["peer"]), "").axes
    (text,) = [text for text in axes.texts if text.get_text() == FAIL]
    assert text.get_position()[0] == 1  # above «tied»


def test_a_scale_between_two_powers_of_ten_has_numbers(charts) -> None:
    records = [record(cases.OURS, 10.0), record("peer", 11.0)]
    result = {**small_result(), "records": summary.with_ratios(records)}
    figure = charts.speed_up(result, charts.Panels(["sample"], ["peer"]), "")
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert sum(low <= place <= high for place in axes.get_yticks()) > 2


def test_many_bars_have_wider_panels(charts) -> None:
    few, many = (charts.Panels("abcde", [], bars).figure for bars in (20, 60))
    columns = [len({axes.get_subplotspec().colspan for axes in f.axes}) for f in (few, many)]
    assert columns == [3, 2]


def test_threads_of_two_commits_are_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, charts
) -> None:
    paths = []
    for threads, commit in ((1, "aaa"), (2, "bbb")):
        result = small_result()
        result["machine"] |= {"threads": threads, "commit": commit}
        paths.append(tmp_path / f"{threads}.json")
        paths[-1].write_text(json.dumps(result))
    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, path: figures.append(figure))
    plot.write_threads(paths, tmp_path)
    assert "commit aaa and bbb" in figures[0].get_supxlabel()


def test_no_provider_looks_like_another_or_the_floor(charts) -> None:
    names = [cases.OURS, cases.FLOOR, *(f"peer {i}" for i in range(20))]
    panels = charts.Panels(["sample"], names)
    lines = {(str(s["color"]), s.get("linestyle", "-")) for s in map(panels.style, names)}
    bars = {(s["color"], s["hatch"]) for s in map(panels.bar_style, names[2:])}
    assert (len(lines), len(bars)) == (len(names), len(names) - 2)
    assert all(len(set(color)) > 1 for color, _ in bars), "a grey peer"


def test_a_result_that_is_not_there_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["plot", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith("bench plot: no file ")
    for text, fault in (("{", "not JSON: "), ("[]", "not a result of python -m bench: ")):
        (tmp_path / "bad.json").write_text(text)
        assert program.main(["plot", str(tmp_path / "bad.json")]) == 2
        assert capsys.readouterr().err.startswith(f"bench plot: {fault}")

"""What a call costs besides the row: which calls are timed, and what is not counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import calls, timing


def test_every_way_of_calling_is_recorded_beside_argmax(tmp_path: Path) -> None:
    path = tmp_path / "calls.json"
    assert program.main(["calls", "--seconds", "0.001", "--output", str(path)]) == 0
    records = json.loads(path.read_text())["records"]
    found = [(record["mode"], record["call"]) for record in records]
    sample, loss = (list(make("cpu")) for make in (calls.variants, calls.loss_variants))
    expected = [(mode, call) for mode in ("plain", "inference mode") for call in sample]
    expected += [(mode, call) for mode in ("plain", "cold caches") for call in loss]
    assert found == expected
    for record in records:
        assert record["microseconds"]["median"] > 0
        assert (record["ratio_to_argmax"] == 1) == (record["call"] == "torch.argmax")


def test_what_is_done_before_a_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    prepared = []

    def pass_time(seconds: float) -> None:
        clock[0] += seconds

    def before() -> None:
        prepared.append(clock[0])
        pass_time(100.0)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    functions = {"a": lambda number: pass_time(2.0), "b": lambda number: pass_time(3.0)}
    times = timing.time_together(functions, 0.1, before)
    assert (times["a"].median, times["b"].median) == (2e6, 3e6)
    assert len(prepared) == 2 * 5

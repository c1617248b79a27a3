"""The program that makes all results: parts that parse, what they cover, how far a run is."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import cpu, full, plot
from bench.options import shapes
from bench.rows import DTYPES, FIXED_PARAMETERS


def test_the_full_run_is_made_of_commands_that_parse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*arguments: str) -> bool:
        commands.append(arguments)
        if arguments[0] == "cpu":
            options = cpu.parser().parse_args(arguments[1:])
            options.output.touch()
            assert shapes(cpu.parser(), options)
        if arguments[0] == "plot":
            plot.parser().parse_args(arguments[1:])
        return True

    monkeypatch.setattr(full, "_bench", run)
    assert program.main(["full", "--output", str(tmp_path), "--only", "cpu"]) == 0
    assert [command[0] for command in commands] == ["cpu", "plot"]
    commands.clear()
    assert program.main(["full", "--output", str(tmp_path)]) == 0
    assert len(commands) == len(full.PARTS) + len(full.CHARTS)
    drawn = {path for command in commands if command[0] == "plot" for path in command}
    assert {str(tmp_path / f"{name}.json") for name in full.PARTS if name != "calls"} <= drawn
    commands.clear()
    assert program.main(["full", "--output", str(tmp_path), "--no-runs"]) == 0
    assert [command[0] for command in commands] == ["plot"] * len(full.CHARTS)


def test_the_full_run_covers_every_dtype_and_vocabulary_of_the_losses_too() -> None:
    covered: dict[str, set[tuple[str, int]]] = {}
    for command in full.PARTS.values():
        name, *arguments = shlex.split(command)
        if name == "cpu":
            for shape in shapes(cpu.parser(), cpu.parser().parse_args(arguments)):
                covered.setdefault(shape.op, set()).add((shape.dtype, shape.vocab))
    for op in ("sample", "filter_logits", "distribution_stats", "kept_indices", "autodeco_loss"):
        assert covered[op] >= set(itertools.product(DTYPES, (32000, 151936, 262144))), op
    assert covered["linear_autodeco_loss"] >= set(itertools.product(DTYPES, (32000, 151936)))


def test_a_full_run_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full, "_bench", lambda *arguments: True)
    assert program.main(["full", "--output", str(tmp_path), "--only", "cpu-grid", "cpu"]) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first == "part 1 of 2, 0.0 minutes so far: cpu-grid cpu"
    assert second == "part 2 of 2, 0.0 minutes so far: cpu"


def test_the_hot_rows_are_timed_with_every_fixed_temperature_and_top_p() -> None:
    arguments = shlex.split(full.PARTS["cpu-hot"])[1:]
    options = cpu.parser().parse_args(arguments)
    assert {shape.distribution for shape in shapes(cpu.parser(), options)} == set(FIXED_PARAMETERS)
    assert options.provider == ["autodeco_ext", "floor", "hugging face"]

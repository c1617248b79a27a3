"""What the command line shows while it works, on a terminal and in a log file."""

from __future__ import annotations

import io
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from word_problems import save_base

from autodeco_ext.cli import main, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr(progress, "_TICK_SECONDS", 0.01)
    screen = Terminal()
    # Not sys.stderr itself, which pytest sets again between a fixture and its test.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    return screen


def wait_for(screen: Terminal, count: int) -> None:
    """Until the seconds have been written this often."""
    deadline = time.monotonic() + 10
    while screen.getvalue().count("\r") < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_on_a_terminal_a_step_shows_that_it_is_alive(terminal: Terminal) -> None:
    threads = threading.active_count()
    with progress.step("fetching"):
        wait_for(terminal, 3)
        assert set(terminal.getvalue().split("\r")[1:]) == {"fetching ... 0 s"}
    line, after = terminal.getvalue().split("\n")
    assert re.fullmatch(r"fetching: \d\.\d s *", line.split("\r")[-1]) and after == ""
    assert len(line.split("\r")[-1]) >= len("fetching ... 0 s")  # nothing of it stays visible
    assert threading.active_count() == threads


def test_on_a_terminal_a_failed_step_leaves_the_line_to_the_error(terminal: Terminal) -> None:
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), progress.step("fetching"):
        raise KeyboardInterrupt
    progress.say("interrupted")
    assert terminal.getvalue().endswith("\ninterrupted\n")
    assert ": " not in terminal.getvalue()
    assert threading.active_count() == threads


def test_in_a_log_file_a_step_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.step("fetching"):
        time.sleep(0.01)
    said = capsys.readouterr().err
    assert re.fullmatch(r"fetching \.\.\.\nfetching: 0\.0 s\n", said)
    with pytest.raises(ValueError), progress.step("fetching"):
        raise ValueError
    assert capsys.readouterr().err == "fetching ...\n"


def test_in_a_log_file_long_work_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar("drawing", 3, "answer") as advance:
        advance(1)
        assert capsys.readouterr().err == "drawing ...\n"  # not on every step
        monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
        advance(1)
        assert re.fullmatch(r"drawing: 2 of 3 answers in 0\.\d s\n", capsys.readouterr().err)
        advance(1)
    assert re.fullmatch(r"drawing: 3 of 3 answers in 0\.\d s\n", capsys.readouterr().err)


def test_init_and_generate_say_that_they_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, heads = save_base(tmp_path / "base"), str(tmp_path / "heads")
    capsys.readouterr()
    assert main(["init", str(base), "--output", heads]) == 0
    assert capsys.readouterr().err.startswith(
        "loading the base model ...\nloading the base model: "
    )
    command = ["generate", "--model", heads, "--prompt", "How many", "--max-new-tokens", "2"]
    assert main(command) == 0
    assert capsys.readouterr().err.startswith("loading the model ...\nloading the model: ")

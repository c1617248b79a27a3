"""What `python -m bench gpu` runs as processes of their own: their ends, and the sanitizers."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bench_records import FACTS

from bench import gpu
from bench.gpu import Deadline
from bench.gpu import sanitize as gpu_sanitize
from bench.gpu import test as gpu_test
from bench.gpu import tools as gpu_tools


@pytest.mark.parametrize(
    ("says", "code", "outcome"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, "passed"),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", 86, "failed"),
        ("Unable to find injection library", 0, "failed"),
        ("exercise: 90 calls, 1 wrong", 1, "failed"),
    ],
)
def test_a_sanitizer_passes_only_with_its_own_summary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, code: int, outcome: str
) -> None:
    program_path = tmp_path / "compute-sanitizer"
    program_path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    program_path.chmod(0o755)
    monkeypatch.setattr(gpu_sanitize, "require", lambda name: str(program_path))
    result = gpu_sanitize._run_tool("memcheck", tmp_path, 60)
    assert result["outcome"] == outcome
    assert (says in result.get("log", "")) == (outcome != "passed")


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80-real 86-real 89-real 90a-real 100a-real 120-real 90-virtual", (9, 0), True),
        ("80-real 86-real 89-real 90a-real 100a-real 120-real 90-virtual", (8, 9), False),
        ("80-virtual", (9, 0), False),
        ("80-virtual 120-real", (9, 0), False),
        ("120-real", (12, 0), True),
        ("90", (9, 0), True),
        ("90a", (9, 0), True),
        ("80", (9, 0), False),
        ("90a-virtual 80", (9, 0), True),
        ("80-virtual 90a-real", (10, 0), False),
        ("80-virtual 90-real", (10, 0), False),
        ("80-virtual 90", (10, 0), True),
        ("100f-real", (10, 0), True),
        ("80-virtual 100f-real", (10, 3), True),
        ("80-virtual 100f-virtual", (12, 0), False),
        ("native", (9, 0), True),
        ("native", (8, 9), False),
        ("all-major", (9, 0), True),
    ],
)
def test_which_builds_have_clusters(
    architectures: str, capability: tuple[int, int], expected: bool
) -> None:
    assert gpu_sanitize.has_clusters(architectures, capability) is expected


@pytest.fixture
def sanitize_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    """The stage with tools that pass, each in `seconds` of 480; `run` are those that have begun."""
    given = {"architectures": "90a-real", "seconds": 0.0, "run": []}
    left = [480.0]

    class Clock:
        def left(self) -> float:
            return left[0]

    def run_tool(tool: str, folder: Path, seconds: float) -> dict:
        given["run"].append(tool)
        left[0] -= given["seconds"]
        outcome = {"outcome": "passed", "seconds": 1, "summary": "0 errors"}
        return outcome if left[0] >= 0 else {**outcome, "outcome": "stopped", "log": ""}

    def start(options: object) -> tuple[Path, Clock]:
        left[0] = 480.0
        given["run"] = []
        return tmp_path, Clock()

    monkeypatch.setattr(gpu_sanitize, "start", start)
    monkeypatch.setattr(gpu_sanitize, "_run_tool", run_tool)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    facts = lambda: {**FACTS, "architectures": given["architectures"]}  # noqa: E731
    monkeypatch.setattr(gpu_sanitize, "gpu_machine", facts)
    return given


def test_a_build_without_clusters_has_no_initcheck(
    sanitize_stage: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    sanitize_stage["architectures"] = "80-virtual"
    assert gpu_sanitize.run(gpu_sanitize.parser().parse_args([])) == 0
    assert sanitize_stage["run"] == ["memcheck", "racecheck", "synccheck"]
    assert "initcheck  left out: without clusters the blocks" in capsys.readouterr().out
    sanitize_stage["architectures"] = "90a-real"
    assert gpu_sanitize.run(gpu_sanitize.parser().parse_args([])) == 0
    assert sanitize_stage["run"] == list(gpu_sanitize.TOOLS)


@pytest.mark.parametrize(("seconds", "commands"), [(200, [2, 2]), (300, [1, 1, 1, 1])])
def test_a_sanitizer_that_may_not_end_in_time_waits_for_the_next_command(
    sanitize_stage: dict, seconds: float, commands: list[int]
) -> None:
    sanitize_stage["seconds"] = seconds
    codes = []
    for begun in commands:
        codes.append(gpu_sanitize.run(gpu_sanitize.parser().parse_args([])))
        assert len(sanitize_stage["run"]) == begun
    assert codes == [1] * (len(commands) - 1) + [0]


def test_a_sanitizer_that_was_cut_off_is_named_as_left(
    sanitize_stage: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    sanitize_stage["seconds"] = 500
    assert gpu_sanitize.run(gpu_sanitize.parser().parse_args(["--tool", "memcheck"])) == 1
    assert "left: memcheck; type the same command again" in capsys.readouterr().out


class Grandchild:
    """What a command starts; it would sleep for a minute."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "process"
        self.command = ["sh", "-c", f"sh -c 'echo $$ > {self._file}; exec sleep 60' & wait"]

    def has_begun(self) -> bool:
        return self._file.exists() and self._file.read_text().endswith("\n")

    def assert_ended(self) -> None:
        status = Path(f"/proc/{int(self._file.read_text())}/stat")
        until = time.monotonic() + 20
        # Its new parent may not have looked yet: Z.
        while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < until, "it is running still"
            time.sleep(0.01)


def test_what_runs_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    grandchild, seconds = Grandchild(tmp_path), 0.2
    while not grandchild.has_begun():
        code = gpu_tools.run_logged(grandchild.command, tmp_path / "log", seconds)
        seconds *= 2
    assert code == 124
    grandchild.assert_ended()
    assert (tmp_path / "log").read_text().startswith("\nstopped after ")


def test_an_interrupt_ends_what_other_threads_have_started(tmp_path: Path) -> None:
    grandchild, codes = Grandchild(tmp_path), []
    thread = threading.Thread(
        target=lambda: codes.append(
            gpu_tools.run_logged(grandchild.command, tmp_path / "log", seconds=60)
        )
    )
    thread.start()
    while not grandchild.has_begun():
        time.sleep(0.01)
    gpu_tools.end_all()
    thread.join()
    assert codes == [-signal.SIGKILL]
    grandchild.assert_ended()


def test_a_process_that_its_own_thread_has_reaped_keeps_no_other_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, other = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2))
    gone.kill()
    gone.wait()
    monkeypatch.setattr(gone, "poll", lambda: None)  # asked just before
    # In this order; a set has none.
    monkeypatch.setattr(gpu_tools, "_running", [gone, other])
    try:
        gpu_tools.end_all()
        assert other.returncode == -signal.SIGKILL
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("stage", [gpu_sanitize, gpu_test], ids=["main thread", "other threads"])
def test_a_signal_ends_what_a_stage_has_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: ModuleType, number: signal.Signals
) -> None:
    grandchild = Grandchild(tmp_path)

    def run_one(name: str, *_: object) -> None:
        gpu_tools.run_logged(grandchild.command, tmp_path / "log", seconds=60)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stage, "gpu_machine", lambda: FACTS)
    monkeypatch.setattr(stage, "start", lambda options: (tmp_path, Deadline(float("inf"))))
    monkeypatch.setattr(stage, "_run_file" if stage is gpu_test else "_run_tool", run_one)

    def send() -> None:
        while not grandchild.has_begun():
            time.sleep(0.01)
        for _ in range(2):  # as `timeout` does
            os.kill(os.getpid(), number)

    def not_handled(*_: object) -> None:
        raise AssertionError("the stage does not handle this signal")

    before = signal.signal(number, not_handled)
    begin = time.monotonic()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        name = stage.__name__.rpartition(".")[2]
        option = ["--files", "a file"] if stage is gpu_test else ["--tool", "memcheck"]
        with pytest.raises(SystemExit) as ended:
            gpu.main([name, *option])
        assert time.monotonic() - begin < 30, "it has waited for the end of what it started"
        assert ended.value.code == 128 + number
        assert signal.getsignal(number) is not_handled
    finally:
        sender.join()
        signal.signal(number, before)
        gpu_tools.end_all()
    grandchild.assert_ended()


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with gpu._signals_as_exit():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_missing_tool_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tools, "find", lambda name: None)
    with pytest.raises(SystemExit, match="needs nvcc, and there is none on PATH"):
        gpu_tools.require("nvcc")

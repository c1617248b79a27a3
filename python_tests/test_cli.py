"""The command line: exit codes, one sentence for bad input, what is printed and written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from word_problems import save_base

import autodeco_ext
from autodeco_ext.cli import build_parser, main
from autodeco_ext.cli.program import to_type

COMMANDS = ("info", "init", "generate", "demo")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def heads(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    assert main(["init", str(base), "--output", str(folder)]) == 0
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, loads: bool = False) -> str:
    """Run a command that must end with code 2 and one line on stderr; return the line.

    loads: whether the model must be loaded, which is announced, to see what is wrong.
    """
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *announced, line = captured.err.splitlines()
    assert bool(announced) == loads
    assert all(said.startswith("loading the ") for said in announced)
    return line


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"autodeco_ext {autodeco_ext.__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "examples:" in said and f"autodeco {command}" in said.split("examples:")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_can_be_parsed(command: str) -> None:
    parser = build_parser()
    subparser = parser._subparsers._group_actions[0].choices[command]
    lines = [line.strip() for line in subparser.epilog.splitlines() if "autodeco " in line]
    assert len(lines) >= 2
    for line in lines:
        # Files in the examples need not exist here.
        words = [
            __file__ if word.endswith((".txt", ".jsonl")) else word for word in shlex.split(line)
        ]
        assert parser.parse_args(words[1:]).command == command


@pytest.mark.slow
def test_help_does_not_import_transformers() -> None:
    code = (
        "import sys; from autodeco_ext.cli import main; main(['demo', '--help']);"
        "print([name for name in ('transformers', 'accelerate', 'gguf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_info_names_versions_and_the_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said and autodeco_ext.cpu_isa() in said
    assert autodeco_ext.build_info()["cuda_decision"] in said


def test_info_as_json_holds_the_build_information(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["build"] == autodeco_ext.build_info()
    assert facts["machine"]["cpu_isa_in_use"] == autodeco_ext.cpu_isa()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "autodeco: the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["generate"], "the following arguments are required: --model"),
        (["generate", "--model", "m"], "one of the arguments --prompt --prompt-file is required"),
        (["generate", "--model", "m", "--prompt", "x", "--max-new-tokens", "0"],
         "--max-new-tokens: must be a whole number >= 1, got '0'"),
        (["generate", "--model", "m", "--prompt", "x", "--top-p", "1.5"],
         "--top-p: must be a number in [0, 1], got '1.5'"),
        (["generate", "--model", "m", "--prompt", "x", "--temperature", "nan"],
         "--temperature: must be a finite number >= 0, got 'nan'"),
        (["generate", "--model", "m", "--prompt", "x", "--seed", "x"],
         "--seed: must be a whole number in 0 .. 2147483647, got 'x'"),
        (["generate", "--model", "m", "--prompt-file", "no.txt"],
         "--prompt-file: must be an existing file, got 'no.txt'"),
        (["generate", "--model", "m", "--prompt", "  "], "--prompt must not be empty, got '  '"),
        (["generate", "--model", "no-such-folder", "--prompt", "x"],
         "the model must be a folder or a hub repository (owner/name), got 'no-such-folder'"),
        (["generate", "--model", "", "--prompt", "x"], "--model: must not be empty, got ''"),
        (["generate", "--model", "m", "--prompt", "x", "--trace", ""],
         "--trace: must not be empty, got ''"),
        (["init", "", "--output", "o"], "base: must not be empty, got ''"),
        (["init", "b", "--output", " "], "--output: must not be empty, got ' '"),
        (["demo", "--model", ""], "--model: must not be empty, got ''"),
        (["demo", "--output", ""], "--output: must not be empty, got ''"),
        (["demo", "--cache-dir", ""], "--cache-dir: must not be empty, got ''"),
        (["generate", "--model", "m", "--prompt", "x", "--greedy", "--top-p", "0.9"],
         "--greedy must stand without --temperature and --top-p, got --top-p too"),
        (["generate", "--model", "m", "--prompt", "x", "--trace", "no-such-folder/t.html"],
         "--trace must be in an existing folder, got no-such-folder/t.html"),
        (["init", "no-such-folder", "--output", "o"],
         "the base model must be a folder or a hub repository (owner/name)"),
        (["demo", "--model", "no-such-folder"],
         "the base model must be a folder or a hub repository (owner/name)"),
        (["demo", "--samples", "0"], "--samples: must be a whole number >= 1, got '0'"),
        (["demo", "--learning-rate", "0"], "--learning-rate: must be a finite number > 0, got '0'"),
        (["demo", "--data", "no.jsonl"], "--data: must be an existing file, got 'no.jsonl'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refusal(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_init_says_that_the_heads_are_untrained(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(base), "--output", str(tmp_path / "new")]) == 0
    assert "untrained" in capsys.readouterr().out
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_init_does_not_overwrite_unless_told(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init", str(base), "--output", str(tmp_path / "new")]
    assert main(arguments) == 0
    capsys.readouterr()
    assert "--output must be a new or empty folder" in refusal(capsys, *arguments)
    assert main([*arguments, "--force"]) == 0


def test_init_with_a_seed_is_reproducible(base: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["init", str(base), "--output", str(tmp_path / name), "--seed", seed]) == 0
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def generated(capsys: pytest.CaptureFixture[str], heads: Path, *more: str) -> tuple[str, str]:
    command = ["generate", "--model", str(heads), "--prompt", "How many apples"]
    assert main([*command, "--max-new-tokens", "12", *more]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_same_seed_generates_the_same_text(
    heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [generated(capsys, heads, "--seed", seed)[0] for seed in ("1", "1", "2", "3")]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_the_seed_that_was_used_is_told(heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = generated(capsys, heads)
    seed = said.split("seed ")[1].split()[0]
    assert generated(capsys, heads, "--seed", seed)[0] == text


def test_given_values_replace_the_predicted_ones(
    heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = generated(capsys, heads, "--seed", "1", "--temperature", "0.25")
    assert "mean temperature 0.250 (given)" in said and "(predicted)" in said
    _, said = generated(capsys, heads, "--seed", "1", "--top-p", "0.5")
    assert "mean top-p 0.500 (given)" in said


def test_greedy_text_does_not_depend_on_the_seed(
    heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, said = generated(capsys, heads, "--greedy", "--seed", "1")
    assert "mean kept 1.0 of 11 tokens, left after top-p" in said
    assert generated(capsys, heads, "--greedy", "--seed", "2")[0] == first


def test_the_trace_page_shows_the_generated_text(
    heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "trace.html"
    _, said = generated(capsys, heads, "--seed", "1", "--trace", str(page))
    document = page.read_text(encoding="utf-8")
    count = int(said.split(" tokens in")[0].split()[-1])
    assert document.count('title="T ') == count
    assert "How many apples" in document


def test_a_prompt_file_is_read(
    heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("How many apples", encoding="utf-8")
    text, _ = generated(capsys, heads, "--seed", "1")
    command = ["generate", "--model", str(heads), "--prompt-file", str(path), "--seed", "1"]
    assert main([*command, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == text


def test_chat_needs_a_template(heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(heads), "--prompt", "x", "--chat"]
    assert "--chat requires a tokenizer with a chat template" in refusal(
        capsys, *command, loads=True
    )


def test_a_prompt_longer_than_the_model_is_refused(
    heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--model", str(heads), "--prompt", "pens " * 400]
    assert "the prompt must have at most 512 tokens" in refusal(capsys, *command, loads=True)


def test_a_damaged_checkpoint_is_refused(
    heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((heads / "config.json").read_text())
    (damaged / "model.safetensors").write_bytes(b"nothing")
    said = refusal(capsys, "generate", "--model", str(damaged), "--prompt", "x", loads=True)
    assert "must be a safetensors file" in said


def test_a_folder_that_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complaint = f"{tmp_path} holds no model (no config.json)"
    assert complaint in refusal(capsys, "generate", "--model", str(tmp_path), "--prompt", "x")
    assert complaint in refusal(capsys, "init", str(tmp_path), "--output", str(tmp_path / "o"))
    assert complaint in refusal(capsys, "demo", "--model", str(tmp_path))


def test_a_folder_that_is_not_there_is_told_from_one_of_its_name_that_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--prompt", "x", "--model"]
    assert refusal(capsys, *command, "./nope").endswith(
        f"'./nope', which is no folder in {tmp_path}"
    )
    (tmp_path / "nope").mkdir()
    said = refusal(capsys, *command, "/no/such/nope")
    assert said.endswith("got '/no/such/nope', which is no folder (did you mean './nope'?)")


def test_a_base_model_and_a_checkpoint_are_not_mistaken_for_each_other(
    base: Path, heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "generate", "--model", str(base), "--prompt", "x")
    assert "holds a base model without heads; put heads on it with: autodeco init " in said
    output = str(tmp_path / "o")
    for command in (["init", str(heads)], ["demo", "--model", str(heads)]):
        said = refusal(capsys, *command, "--output", output)
        assert f"{heads} is an AutoDeco checkpoint already; give its base model" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("own", [True, False])
def test_a_model_that_no_hub_has_is_refused_in_one_sentence(
    own: bool,
    heads: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    missing = "no-such-owner/no-such-model"
    command = ["init", missing, "--output", str(tmp_path / "o")]
    if not own:  # heads that are here, on a base that is not
        moved = tmp_path / "moved"
        shutil.copytree(heads, moved)
        config = json.loads((moved / "config.json").read_text())
        config["base_model_name_or_path"] = missing
        (moved / "config.json").write_text(json.dumps(config))
        command = ["generate", "--model", str(moved), "--prompt", "x"]
    said = refusal(capsys, *command, loads=True)
    here = f"'{missing}' is no folder in {Path.cwd()}, not in the local cache, and the hub"
    assert here in said


def test_an_output_that_cannot_be_a_folder_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below" / "it"):
        complaint = f"--output must be a folder, got the file {file}"
        assert complaint in refusal(capsys, "demo", "--output", str(output))
        assert complaint in refusal(capsys, "init", str(base), "--output", str(output))


def test_a_trace_cannot_be_a_folder(
    heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--model", str(heads), "--prompt", "x", "--trace", str(tmp_path)]
    assert f"--trace must be a file, got the folder {tmp_path}" in refusal(capsys, *command)


def test_a_prompt_file_that_is_not_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompt.bin"
    path.write_bytes(b"\xff\xfe\x00")
    said = refusal(capsys, "generate", "--model", "m", "--prompt-file", str(path))
    assert f"--prompt-file must be UTF-8 text, got {path}" in said


def test_generate_uses_as_many_threads_as_told(
    heads: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    generated(capsys, heads, "--seed", "1", "--threads", "3")
    assert told == [3]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_a_checkpoint_is_as_readable_as_any_new_file(heads: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("")
    assert {file.stat().st_mode for file in heads.iterdir()} == {new.stat().st_mode}


def test_a_printed_command_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "venv" / "bin" / "autodeco"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert to_type(["demo", "--output", "a b"]) == "venv/bin/autodeco demo --output 'a b'"
    monkeypatch.chdir(program.parent)
    assert to_type(["demo"]) == "./autodeco demo"
    monkeypatch.setenv("PATH", str(program.parent))
    assert to_type(["demo"]) == "autodeco demo"
    monkeypatch.setattr(sys, "argv", [autodeco_ext.__path__[0] + "/__main__.py"])
    assert to_type(["demo"]).endswith(" -m autodeco_ext demo")


@pytest.mark.slow
def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autodeco_ext", "demo", "--samples", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr

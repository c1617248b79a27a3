"""The README's examples run as they stand, those of a model from a hub with a tiny one instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path

import pytest
from word_problems import save_base

import autodeco_ext
from bench import readme

README = Path(__file__).resolve().parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_every_public_name_is_in_the_table() -> None:
    table = README.read_text().split("## All names\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(autodeco_ext.__all__) - {"__version__"} <= named


def run_block_with(call: str, replaced: Mapping[str, str] | None = None) -> dict[str, object]:
    """The names that the first block with this call defines."""
    block = next(block for block in python_blocks() if call in block)
    for text, other in (replaced or {}).items():
        assert text in block
        block = block.replace(text, other)
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    return names


def test_the_first_example_runs_as_it_stands() -> None:
    names = run_block_with("autodeco_ext.sample(")
    assert names["tokens"].shape == (4,)
    assert names["tokens"][0] == names["logits"][0].argmax()


def test_the_truncation_example_runs_as_it_stands() -> None:
    names = run_block_with("autodeco_ext.kept_indices(")
    assert names["logprobs"].isfinite().all()
    assert len(names["kept"].ids) == names["kept"].offsets[-1] == (names["truncated"] > -inf).sum()


def test_the_example_of_a_decode_step_runs_as_it_stands() -> None:
    names = run_block_with("autodeco_ext.decode_step(")
    assert names["step"].tokens.shape == (4,)
    assert names["step"].temperature.tolist() == [names["torch"].tensor(0.7).item()] * 4


def test_the_training_example_runs_as_it_stands() -> None:
    names = run_block_with("linear_autodeco_loss(")
    assert names["losses"].loss > 0
    assert all(one.grad.isfinite().all() for one in names["heads"].parameters())


@pytest.mark.parametrize(
    "call", ["AutoDecoModelForCausalLM.from_base(", "SamplingLogitsProcessor("]
)
def test_the_examples_of_a_model_run_with_a_tiny_one(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_block_with(call, {"Qwen/Qwen3-0.6B": str(save_base(tmp_path / "base"))})
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]


@pytest.mark.parametrize("table", [readme.sampling, readme.training])
def test_the_tables_of_times_are_those_of_the_results(table: Callable[[], str]) -> None:
    assert table() in README.read_text(), "python -m bench readme prints what belongs there"


def test_a_peer_without_a_time_has_no_column(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = json.loads((readme.RESULTS / "cpu.json").read_text())
    for record in result["records"]:
        if record["provider"] == "llama.cpp":
            record.pop("microseconds", None)
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    assert readme.sampling().splitlines()[0].endswith("| Hugging Face | llama.cpp |")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    head, line, *rows = readme.sampling().splitlines()
    assert head.endswith("| Hugging Face |")
    assert {one.count("|") for one in (line, *rows)} == {head.count("|")}


def test_every_example_has_a_test() -> None:
    assert len(python_blocks()) == 6

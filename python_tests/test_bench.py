"""The benchmark program: what is wrong has no time, what is not there is named."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from bench_records import SHAPE, use_small_base

import autodeco_ext
from autodeco_ext import reference
from bench import __main__ as program
from bench import cases, runner, summary, timing
from bench.cases import kept_bounds
from bench.fetch_peers import Package, unpack
from bench.gpu import STAGES
from bench.machine import machine
from bench.memory import extra_bytes
from bench.providers import (
    NOT_FETCHED,
    Missing,
    Provider,
    flash_infer,
    floor,
    linear_losses,
    llama_cpp,
    vllm,
)
from bench.rows import DISTRIBUTIONS, parameters
from bench.runner import FAIL, OK, Shape


def test_a_provider_that_draws_outside_the_nucleus_fails_its_check() -> None:
    inputs = runner.make_inputs(SHAPE, 1, "cpu")
    right = Provider(lambda logits, t, p: logits.argmax(-1))
    wrong = Provider(lambda logits, t, p: logits.argmin(-1))
    assert runner.verdict("sample", right, inputs) == OK
    assert runner.verdict("sample", wrong, inputs) == FAIL
    assert runner.verdict("sample", Provider(lambda *_: torch.tensor([700] * 3)), inputs) == FAIL


@pytest.mark.parametrize(
    ("op", "distribution"),
    [
        ("sample", "peaked"),
        ("sample", "uniform"),
        ("mixed_sample", "mixed"),
        ("decode_step", "tied"),
    ],
)
def test_of_us_the_draw_of_the_seed_is_asked(op: str, distribution: str) -> None:
    shape = SHAPE._replace(op=op, rows=64, distribution=distribution)
    inputs = runner.make_inputs(shape, 1, "cpu")
    ours = cases.case(op).providers("cpu")[cases.OURS]

    def another_draw(*arguments: torch.Tensor) -> object:
        if op != "decode_step":
            return autodeco_ext.sample(*arguments, seed=1)
        step = ours.run(*arguments)
        tokens = autodeco_ext.sample(arguments[0], step.temperature, step.top_p, seed=1)
        return step._replace(tokens=tokens)

    assert runner.verdict(op, ours, inputs) == OK
    assert runner.verdict(op, ours._replace(run=another_draw), inputs) == FAIL
    in_the_nucleus = ours._replace(run=another_draw, is_right=None)
    assert runner.verdict(op, in_the_nucleus, inputs) == OK


@pytest.mark.parametrize("rows", [1, 8])
def test_parameters_cover_their_ranges_in_every_batch_and_over_all(rows: int) -> None:
    count = 10
    for values, low, high in zip(
        parameters("peaked", count, rows), (0.1, 0.1), (2.0, 1.0), strict=True
    ):
        shares = (values - low) / (high - low)
        parts = (shares * rows).floor().long()
        assert torch.equal(parts.sort(dim=1).values, torch.arange(rows).expand(count, rows))
        every_part = (shares * rows * count).floor().long().flatten().sort().values
        assert torch.equal(every_part, torch.arange(rows * count))


@pytest.mark.parametrize("op", ["sample", "filter_logits"])
@pytest.mark.parametrize("distribution", ["peaked", "tied"])
def test_hugging_face_is_judged_with_its_own_parameters(op: str, distribution: str) -> None:
    shape = SHAPE._replace(op=op, distribution=distribution, rows=64)
    inputs = runner.make_inputs(shape, 1, "cpu")
    peer = cases.case(op).providers("cpu")["hugging face"]
    assert runner.verdict(op, peer, inputs) == OK
    hotter = peer._replace(run=lambda logits, t, p: peer.run(0.2 * logits, t, p))
    assert runner.verdict(op, hotter, inputs) == FAIL


def test_a_result_names_what_the_machine_has() -> None:
    facts = machine()
    assert facts["commit"] and facts["compiler"] and facts["cores"] == os.cpu_count()
    if Path("/proc/meminfo").exists():
        total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
        assert facts["memory_bytes"] == pytest.approx(int(total[1]) * 1024, rel=0.1)
    if Path("/sys/devices/system/cpu/cpu0/cache/index0/size").exists():
        assert facts["last_level_cache_bytes"] > 2**15


def test_a_provider_that_raises_is_a_line_of_the_table() -> None:
    def broken(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel\nand more")

    inputs = runner.make_inputs(SHAPE, 1, "cpu")
    check = runner.verdict("sample", Provider(broken), inputs)
    assert check == "ERROR: RuntimeError: no such kernel"
    assert not runner.may_be_timed(check)


@pytest.mark.parametrize("op", ["filter_logits", "distribution_stats"])
def test_a_changed_result_fails_the_check_of_every_op(op: str) -> None:
    inputs = runner.make_inputs(SHAPE._replace(op=op), 1, "cpu")
    ours = cases.case(op).providers("cpu")[cases.OURS]
    changed = Provider(lambda *arguments: ours.run(*arguments) * 1.001)
    assert runner.verdict(op, ours, inputs) == OK
    assert runner.verdict(op, changed, inputs) == FAIL


def test_a_kept_set_with_another_token_fails_its_check() -> None:
    inputs = runner.make_inputs(SHAPE._replace(op="kept_indices"), 1, "cpu")
    ours = cases.case("kept_indices").providers("cpu")[cases.OURS]

    def changed(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offsets, ids = ours.run(*arguments)
        ids[0] = 499 if ids[0] != 499 else 0
        return offsets, ids

    assert runner.verdict("kept_indices", ours, inputs) == OK
    assert runner.verdict("kept_indices", Provider(changed), inputs) == FAIL


def test_another_batch_at_the_same_address_is_judged_anew() -> None:
    t, p = torch.ones(1), torch.full((1,), 0.5)
    for hot in range(3):
        logits = torch.zeros(1, 3)
        logits[0, hot] = 9.0
        _, may_be_kept = kept_bounds.kept_bounds(logits, t, p)
        assert may_be_kept[0].tolist() == [i == hot for i in range(3)]


def test_the_same_logits_with_another_temperature_are_judged_anew() -> None:
    logits, p = torch.tensor([[2.0, 1.0, 0.0]]), torch.full((1,), 0.6)
    kept = [
        kept_bounds.kept_bounds(logits, torch.full((1,), t), p)[1].sum().item() for t in (0.1, 9.0)
    ]
    assert kept == [1, 2]


@pytest.mark.slow
def test_a_wrong_or_missing_provider_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = {
        cases.OURS: Provider(lambda logits, t, p: logits.argmin(-1)),
        "peer": Provider(lambda logits, t, p: logits.argmax(-1), package="peer==1"),
        "absent": Missing("not installed: run it"),
    }
    monkeypatch.setattr(cases.case("sample"), "providers", lambda device: providers)
    assert [r["provider"] for r in runner.run_on_cpu(SHAPE, 0.001, ["peer"])] == ["peer"]
    records = summary.with_ratios(list(runner.run_on_cpu(SHAPE, seconds=0.001)))
    assert [r["check"] for r in records] == [FAIL, OK, "not installed: run it"]
    for field in ("microseconds", "extra_bytes"):
        assert [(field in r) for r in records] == [False, True, False]
    assert [r["package"] for r in records if "package" in r] == ["peer==1"]
    assert summary.failed(records)
    assert not summary.failed(records[1:])  # a peer that is not there is no failure of ours
    assert [FAIL in summary.line(r) for r in records] == [True, False, False]


def test_every_distribution_passes_its_checks_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_base(monkeypatch)
    for op in cases.NAMES:
        for distribution in DISTRIBUTIONS:
            if not cases.has_distribution(op, distribution):
                continue
            shape = SHAPE._replace(op=op, distribution=distribution)
            inputs = runner.make_inputs(shape, 1, "cpu")
            providers = cases.case(op).providers("cpu")
            for name in (cases.OURS, cases.FLOOR):
                check = runner.verdict(op, providers[name], inputs)
                assert check == OK or providers[name].unchecked, (op, distribution)


def test_the_rows_of_a_mixed_batch_have_their_own_kinds_and_parameters() -> None:
    shape = SHAPE._replace(distribution="mixed", rows=8)
    inputs = runner.make_inputs(shape, 1, "cpu")
    logits, temperature, top_p = inputs.checked
    assert (temperature == 0).tolist() == [row % 6 == 0 for row in range(8)]
    assert (top_p == 1).tolist() == [row % 6 == 1 for row in range(8)]
    assert (logits == 0).all(-1).tolist() == [row == 4 for row in range(8)]
    assert torch.equal(logits[5], logits[5].round())
    providers = cases.case("sample").providers("cpu")
    peer = runner.verdict("sample", providers["torch sort"], inputs)
    assert peer == "divides by T, and a row has T = 0"
    wrong = providers[cases.OURS]._replace(run=lambda logits, t, p: logits.argmin(-1))
    assert runner.verdict("sample", wrong, inputs) == FAIL
    assert not cases.has_distribution("filter_logits", "mixed")


def test_rows_of_fixed_parameters_are_peaked_and_say_what_they_keep() -> None:
    shape = SHAPE._replace(distribution="T1.5-P0.9", rows=4)
    logits, temperature, top_p = runner.make_inputs(shape, 1, "cpu").checked
    peaked = runner.make_inputs(shape._replace(distribution="peaked"), 1, "cpu").checked
    assert torch.equal(logits, peaked[0])
    assert temperature.tolist() == [1.5] * 4 and top_p.tolist() == pytest.approx([0.9] * 4)
    kept = reference.kept_mask(logits, temperature, top_p).sum(-1).double().mean().item()
    ours = cases.case("sample").providers("cpu")[cases.OURS]
    assert kept > 1 and ours.kept_tokens(logits, temperature, top_p) == kept
    assert shape.distribution not in DISTRIBUTIONS  # timed where it is asked for, not by every run


def test_what_is_kept_is_recorded_as_the_mean_of_all_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []

    def kept_tokens(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> float:
        counts.append(len(counts))
        return counts[-1]

    ours = Provider(lambda logits, t, p: logits.argmax(-1), kept_tokens=kept_tokens)
    monkeypatch.setattr(cases.case("sample"), "providers", lambda device: {cases.OURS: ours})
    (record,) = summary.with_ratios(list(runner.run_on_cpu(SHAPE, seconds=0.001)))
    assert len(counts) > 1 and record["kept_tokens"] == sum(counts) / len(counts)
    assert summary.line(record).endswith(f" {record['kept_tokens']:.0f} kept")


@pytest.mark.parametrize("rows", [1, 5, 14])
def test_a_mixed_batch_is_also_sampled_kind_by_kind(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    shape = SHAPE._replace(op="mixed_sample", distribution="mixed", rows=rows)
    inputs = runner.make_inputs(shape, 1, "cpu")
    provider = cases.case("mixed_sample").providers("cpu")["kind by kind"]
    assert runner.verdict("mixed_sample", provider, inputs) == OK
    sizes = []
    sample = autodeco_ext.sample

    def counting(logits: torch.Tensor, *parameters: torch.Tensor, seed: int) -> torch.Tensor:
        sizes.append(len(logits))
        return sample(logits, *parameters, seed=seed)

    monkeypatch.setattr(autodeco_ext, "sample", counting)
    inputs.call(provider, 0)
    assert sum(sizes) == rows and len(sizes) == min(rows, 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("vocab", [1, 63, 64, 1000])
def test_the_floor_finds_the_maximum_and_the_sum(cpu_backend: str, vocab: int, dtype: str) -> None:
    for distribution in ("peaked", "gaussian5"):
        shape = Shape("sample", distribution, 2, vocab, dtype)
        inputs = runner.make_inputs(shape, 1, "cpu")
        assert runner.verdict("sample", floor.PROVIDER, inputs) == OK


def test_a_peer_that_was_not_fetched_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (flash_infer, vllm):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
        monkeypatch.setattr(module, "load", module.load.__wrapped__)  # without its memory
    monkeypatch.setattr(llama_cpp, "FETCHED", tmp_path / "library.so")
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    assert llama_cpp.sample() == Missing(NOT_FETCHED)
    (tmp_path / "library.so").touch()
    assert llama_cpp.sample().reason.startswith("does not load: ")
    assert set(flash_infer.sample().values()) == {Missing(NOT_FETCHED)}
    assert vllm.sample("cpu") == vllm.filter_logits("cpu") == Missing(NOT_FETCHED)
    monkeypatch.setattr(linear_losses, "_FOLDER", tmp_path / "none")
    for peer in (linear_losses.liger, linear_losses.cut):
        assert peer("cuda") == Missing(NOT_FETCHED)
        assert peer("cpu") == Missing("runs on CUDA only: its kernels are Triton")
    assert NOT_FETCHED == "not installed: run python bench/fetch_peers.py"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_llama_cpp_draws_from_the_nucleus(distribution: str) -> None:
    provider = llama_cpp.sample()
    if isinstance(provider, Missing):
        pytest.skip(f"llama.cpp: {provider.reason}")
    inputs = runner.make_inputs(SHAPE._replace(distribution=distribution, rows=64), 1, "cpu")
    assert runner.verdict("sample", provider, inputs) == OK
    hotter = provider._replace(run=lambda logits, t, p: provider.run(logits, 3 * t, p))
    # Equal logits are a uniform distribution at any temperature, and nearly all of it is kept.
    if distribution != "uniform":
        assert runner.verdict("sample", hotter, inputs) == FAIL


def test_extra_memory_is_the_peak_of_a_call() -> None:
    def call(number: int) -> torch.Tensor:
        torch.ones(48, 2**20, dtype=torch.uint8)
        return torch.ones(16, 2**20, dtype=torch.uint8)

    memory = extra_bytes(call)
    if memory is None:
        pytest.skip("this system does not reset a process's peak memory")
    assert 47 < memory / 2**20 < 51  # the system counts pages to about half a MiB
    assert extra_bytes(lambda number: None) < 2**20


def test_a_slow_provider_is_called_for_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    calls = {"slow": 0, "quick": 0}

    def call(name: str, seconds: float) -> None:
        clock[0] += seconds
        calls[name] += 1

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    functions = {"slow": lambda n: call("slow", 20.0), "quick": lambda n: call("quick", 1.0)}
    times = timing.time_together(functions, seconds=0.5)
    assert (times["slow"].median, times["quick"].median) == (20e6, 1e6)
    assert calls == {"slow": 1 + 2, "quick": 1 + 5}  # the first is not timed


def test_only_what_is_imported_is_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "peer.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("peer/sampling.py", "x = 1")
        archive.writestr("peer/attention/huge.py", "y = 1")
    package = Package("peer==1", "peer", r"peer/[^/]+\.py", strip="peer/")
    assert unpack(package, wheel, tmp_path / "out") == 5
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["sampling.py"]
    with pytest.raises(SystemExit, match="has nothing that matches"):
        unpack(package._replace(wanted="other"), wheel, tmp_path / "out")


@pytest.mark.parametrize(
    "command",
    [["cpu"], ["full"], ["calls"], ["plot"], ["readme"], *(["gpu", stage] for stage in STAGES)],
    ids=" ".join,
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program.main([*command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m bench {' '.join(command)}")


def test_a_wrong_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["gpus"]) == program.main(["gpu", "tests"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "bench: the command must be one of cpu, full, calls, gpu, plot, readme, got 'gpus'"
    )
    assert second == (
        "bench gpu: the stage must be one of build, test, sanitize, bench, got 'tests'"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rows", "0"], "--rows, --vocab and --seconds must be positive"),
        (
            ["--op", "mixed_sample", "--provider", "floor", "hf"],
            "--provider must be of autodeco_ext, floor, kind by kind; got 'hf'",
        ),
        (
            ["--op", "linear_autodeco_loss", "--distribution", "peaked", "tied"],
            "no case: --op linear_autodeco_loss has no --distribution of peaked, tied",
        ),
    ],
)
def test_options_that_nothing_answers_to_are_refused(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(["cpu", *options])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_run_begins_with_what_it_covers(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--op", "mixed_sample", "--rows", "2", "6", "--vocab", "40000"]
    assert program.main(["cpu", *options, "--seconds", "0.001"]) == 0
    covered = "op mixed_sample; distribution mixed; rows 2, 6; vocab 40000; dtype float32"
    assert f"2 cases: {covered}" in capsys.readouterr().out.splitlines()

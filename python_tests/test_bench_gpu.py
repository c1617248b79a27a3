"""The four stages of `python -m bench gpu`, as far as they need no GPU."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from bench_records import FACTS, SHAPE, record

import autodeco_ext
from bench import __main__ as program
from bench import cases
from bench.cuda_timing import CudaTimer
from bench.gpu import STAGES, Deadline, exercise
from bench.gpu import bench as gpu_bench
from bench.gpu import build as gpu_build
from bench.gpu import test as gpu_test
from bench.gpu.journal import Journal
from bench.providers import NOT_FETCHED, Missing, Provider
from bench.runner import FAIL, OK, Shape
from bench.timing import Timing

ONE_SHAPE = ["--vocab", "500", "--dtype", "float32", "--distribution", "peaked"]


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the stage `bench`: no timer, no charts, made-up facts of the machine."""
    monkeypatch.setattr(gpu_bench, "CudaTimer", lambda seconds: None)
    monkeypatch.setattr(gpu_bench, "gpu_machine", lambda: FACTS)
    monkeypatch.setattr(gpu_bench, "_write_charts", lambda folder: None)


def test_a_journal_survives_being_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    Journal(path, FACTS).add(record("peer", 7.0))
    with path.open("a") as file:
        file.write('{"origin": {"gpu": "a G')  # the process ended here
    assert [r["microseconds"]["median"] for r in Journal(path, FACTS).records()] == [7.0]
    assert Journal(path, {**FACTS, "commit": "def"}).records() == []
    assert Journal(path, {**FACTS, "architectures": "80-virtual"}).records() == []


def test_finished_providers_are_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_gpu: None
) -> None:
    runs: list[str] = []

    def run_case(
        shape: Shape, providers: dict, journal: Journal, timer: object, deadline: Deadline
    ) -> int:
        runs.extend(providers)
        for name in providers:
            journal.add(record(name, shape=shape))
        return len(providers)

    providers = {cases.OURS: Provider(print), "peer": Provider(print)}
    monkeypatch.setattr(cases.case("sample"), "providers", lambda device: providers)
    monkeypatch.setattr(gpu_bench, "_run_case", run_case)
    deadline = Deadline(time.monotonic() + 60)
    monkeypatch.setattr(gpu_bench, "start", lambda options: (tmp_path, deadline))
    options = gpu_bench.parser().parse_args(["--op", "sample", "--rows", "1", *ONE_SHAPE])
    assert gpu_bench.run(options) == 0
    assert runs == [cases.OURS, "peer"]
    assert gpu_bench.run(options) == 0
    assert runs == [cases.OURS, "peer"]
    providers["another"] = Provider(print)
    gpu_bench.run(options)
    assert runs[2:] == ["another"]
    result = json.loads((tmp_path / "bench.json").read_text())
    assert len(result["records"]) == 3
    assert result["machine"]["driver"] == "1"


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one case of the stage `bench`."""
    make_inputs = gpu_bench.make_inputs
    monkeypatch.setattr(gpu_bench, "make_inputs", lambda s, c, d: make_inputs(s, c, "cpu"))
    monkeypatch.setattr(gpu_bench, "extra_bytes", lambda call: 64)
    monkeypatch.setattr(gpu_bench, "_require_device", lambda name, shape: None)


def test_no_provider_begins_after_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_the_cpu: None,
    without_gpu: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = [60.0]

    class Clock:
        def left(self) -> float:
            return seconds[0]

    def takes_the_rest(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        seconds[0] = -1.0
        return logits.argmin(-1)  # wrong, so that it is not timed

    def never(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it has begun after the time was over")

    providers = {"first": Provider(takes_the_rest), "second": Provider(never)}
    monkeypatch.setattr(cases.case("sample"), "providers", lambda device: providers)
    monkeypatch.setattr(gpu_bench, "start", lambda options: (tmp_path, Clock()))
    options = gpu_bench.parser().parse_args(["--op", "sample", "--rows", "1", *ONE_SHAPE])
    gpu_bench.run(options)
    assert "1 of 1 cases are left" in capsys.readouterr().out
    (shape,) = gpu_bench.wanted(options)
    journal = Journal(tmp_path / "bench.jsonl", FACTS)
    assert list(journal.of(shape)) == ["first"]
    assert list(gpu_bench._waiting(journal, shape, retry=False)) == ["second"]


class MadeUpTimer:
    """The graph of a provider whose results change cannot be captured."""

    def calls(self, call, count: int) -> Timing:
        return Timing(20.0, 19.0, 21.0)

    def graph(self, call, count: int) -> Timing:
        if not bool(call(0).eq(call(0)).all()):
            raise RuntimeError("capture failed")
        return Timing(10.0, 9.0, 11.0)


def test_a_case_on_the_gpu_has_one_record_per_provider(tmp_path: Path, on_the_cpu: None) -> None:
    def random(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return torch.randint(2**60, p.shape)

    def argmax(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)

    def errors(tokens: torch.Tensor, *arguments: torch.Tensor) -> dict[str, float]:
        return {"token": float((tokens != argmax(*arguments)).double().mean())}

    providers = {
        "right": Provider(argmax, errors=errors, kept_tokens=lambda logits, t, p: 7.0),
        "waits": Provider(argmax, waits=True, package="peer==1"),
        "not captured": Provider(random, unchecked="random"),
        "wrong": Provider(
            lambda logits, t, p: logits.argmin(-1), errors=errors, package="wrong==2"
        ),
        "absent": Missing(NOT_FETCHED),
    }
    journal = Journal(tmp_path / "bench.jsonl", FACTS)
    deadline = Deadline(time.monotonic() + 300)
    assert gpu_bench._run_case(SHAPE, providers, journal, MadeUpTimer(), deadline) == len(providers)
    records = journal.of(SHAPE)
    assert list(records) == list(providers)
    assert {name: r["check"] for name, r in records.items()} == {
        "right": OK,
        "waits": OK,
        "not captured": "not checked: random",
        "wrong": FAIL,
        "absent": NOT_FETCHED,
    }
    times = {name: r.get("microseconds", {}).get("median") for name, r in records.items()}
    assert list(times.values()) == [10.0, 20.0, 20.0, None, None]
    assert records["right"]["call_microseconds"]["median"] == 20.0
    assert records["not captured"]["graph"] == "none: capture failed"
    # Beside the times as on the CPU, of a wrong provider too.
    fields = ("errors", "kept_tokens", "package")
    beside = {name: {f: r[f] for f in fields if f in r} for name, r in records.items()}
    assert beside == {
        "right": {"errors": {"token": 0.0}, "kept_tokens": 7.0},
        "waits": {"package": "peer==1"},
        "not captured": {},
        "wrong": {"errors": {"token": 1.0}, "package": "wrong==2"},
        "absent": {},
    }


def test_a_provider_that_ends_the_run_twice_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cases.case("sample"), "providers", lambda device: {"peer": Provider(print)})
    journal = Journal(tmp_path / "bench.jsonl", FACTS)
    waiting = []
    for attempts in range(3):
        if attempts:
            journal.add(
                {**record("peer", None), "check": gpu_bench.UNFINISHED, "attempts": attempts}
            )
        waiting.append(bool(gpu_bench._waiting(journal, SHAPE, retry=False)))
    assert waiting == [True, True, False]
    assert gpu_bench._waiting(journal, SHAPE, retry=True)


def test_no_case_begins_after_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    without_gpu: None,
) -> None:
    monkeypatch.setattr(cases.case("sample"), "providers", lambda device: {"peer": Provider(print)})
    over = Deadline(time.monotonic() - 1)
    monkeypatch.setattr(gpu_bench, "start", lambda options: (tmp_path, over))
    options = gpu_bench.parser().parse_args(["--op", "sample", "--rows", "1", "4"])
    gpu_bench.run(options)
    assert "140 of 140 cases are left: type the same command again" in capsys.readouterr().out


def test_important_shapes_come_first() -> None:
    options = gpu_bench.parser().parse_args([])
    shapes = gpu_bench.wanted(options)
    peaked = sum(cases.has_distribution(op, "peaked") for op in cases.NAMES)
    assert {(s.vocab, s.distribution, s.rows) for s in shapes[: 6 * peaked]} == {
        (151936, "peaked", rows) for rows in (1, 64, 256)
    }
    assert shapes[0] == Shape("sample", "peaked", 1, 151936, "bfloat16")
    assert all(shape.vocab != 151936 for shape in shapes[-10:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_losses_are_timed_at_the_rows_of_their_goal(dtype: str) -> None:
    goal = Shape("autodeco_loss", "peaked", 4096, 151936, dtype)
    shapes = gpu_bench.wanted(gpu_bench.parser().parse_args([]))
    assert goal in shapes
    assert {shape.op for shape in shapes if shape.rows == 4096} == {"autodeco_loss"}
    later = shapes[shapes.index(goal) :]
    assert any(shape.vocab == 151936 and shape.rows == 1024 for shape in later)
    for others in (["--rows", "1"], ["--op", "sample"], ["--vocab", "32000"]):
        assert goal not in gpu_bench.wanted(gpu_bench.parser().parse_args(others))


def test_what_the_sanitizers_watch_is_right_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert exercise.main("cpu", vocabs=(1, 7, 4099)) == 0
    assert capsys.readouterr().out.endswith("calls, 0 wrong\n")


@pytest.mark.parametrize("mistake", ["a token outside", "another count", "a gradient"])
def test_what_the_sanitizers_watch_is_judged(
    monkeypatch: pytest.MonkeyPatch, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, loss = autodeco_ext.sample, autodeco_ext.autodeco_loss

    def wrong_sample(*arguments, **named):
        result = sample(*arguments, **named)
        if not named.get("return_info"):
            return result
        if mistake == "a token outside":
            return result._replace(tokens=torch.full_like(result.tokens, 4098))
        return result._replace(kept=result.kept + 1)

    def wrong_loss(logits, *arguments, **named):
        result = loss(logits, *arguments, **named)
        return result._replace(loss=result.loss + 0.01 * logits[:, 0].float())

    name, wrong = (
        ("autodeco_loss", wrong_loss) if mistake == "a gradient" else ("sample", wrong_sample)
    )
    monkeypatch.setattr(autodeco_ext, name, wrong)
    assert exercise.main("cpu", vocabs=(4099,)) == 1
    said = "dL/dlogits" if mistake == "a gradient" else "sample with top_k and min_p"
    assert f"wrong: {said}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_test_stage_tells_passed_from_failed(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    (tmp_path / "test_bad.py").write_text("def test_bad():\n    assert 1 == 2\n")
    deadline = Deadline(time.monotonic() + 300)
    good = gpu_test._run_file(str(tmp_path / "test_good.py"), tmp_path, deadline)
    bad = gpu_test._run_file(str(tmp_path / "test_bad.py"), tmp_path, deadline)
    assert (good["outcome"], bad["outcome"]) == ("passed", "failed")
    assert good["summary"].startswith("1 passed")
    assert bad["summary"].startswith("1 failed")
    assert "assert 1 == 2" in bad["log"]
    late = Deadline(time.monotonic())
    assert gpu_test._run_file(str(tmp_path / "test_good.py"), tmp_path, late) is None


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "90a-real"), ((8, 9), "89-real"), ((12, 0), "120-real")]
)
def test_the_build_is_for_the_present_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert gpu_build.architecture() == expected


def test_the_build_is_for_the_named_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environments = []

    def run_logged(command: list[str], log: Path, seconds: float, **extra: str) -> int:
        log.write_text("")
        environments.append(extra)
        return 1  # it goes no further

    monkeypatch.setattr(gpu_build, "run_logged", run_logged)
    monkeypatch.setattr(gpu_build, "require", lambda program: program)
    arguments = ["--architecture", "80-virtual", "--output", str(tmp_path)]
    assert gpu_build.run(gpu_build.parser().parse_args(arguments)) == 1
    assert environments[0]["AUTODECO_CUDA_ARCHS"] == "80-virtual"


@pytest.mark.parametrize(
    ("code", "over_after", "begun", "said"),
    [
        (0, "", ["build.log", "first_call.log", "peers.log"], "flashinfer: the end of peers.log"),
        (1, "", ["build.log", "first_call.log"], "the end of first_call.log\nbench gpu build: the"),
        (0, "build.log", ["build.log"], "left: the first call on the GPU; type the same command"),
        (0, "first_call.log", ["build.log", "first_call.log"], "left: flashinfer; type the same"),
    ],
    ids=["in time", "a call that fails", "over after the build", "over after the call"],
)
def test_the_first_call_on_the_gpu_has_a_log_and_a_limit(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: int,
    over_after: str,
    begun: list[str],
    said: str,
) -> None:
    left, limits = [480.0], {}

    class Clock:
        def left(self) -> float:
            return left[0]

    def run_logged(command: list[str], log: Path, seconds: float, **extra: str) -> int:
        log.write_text(f"the end of {log.name}\n")
        limits[log.name] = seconds
        left[0] = -1.0 if log.name == over_after else left[0] - 100
        return code if log.name == "first_call.log" else 0

    monkeypatch.setattr(gpu_build, "Deadline", lambda at: Clock())
    monkeypatch.setattr(gpu_build, "run_logged", run_logged)
    monkeypatch.setattr(gpu_build, "require", lambda program: program)
    arguments = ["--architecture", "90a-real", "--output", str(tmp_path)]
    succeeded = gpu_build.run(gpu_build.parser().parse_args(arguments)) == 0
    assert succeeded == (code == 0 and over_after != "build.log")
    assert list(limits) == begun
    assert list(limits.values()) == [480.0, 380.0, 280.0][: len(begun)]
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["gpu", stage]) == 2
    message = capsys.readouterr().err.strip()
    assert message == (
        f"bench gpu {stage}: needs a CUDA GPU that torch can use, and torch {torch.__version__} "
        "finds none"
    )


def test_gpu_alone_prints_the_order_of_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["gpu"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"python -m bench gpu {stage}") for stage in STAGES]
    assert places == sorted(places)


@pytest.mark.parametrize("op", cases.NAMES)
def test_our_providers_are_right_and_timed_on_cuda(
    cuda: torch.device, op: str, tmp_path: Path
) -> None:
    shape = Shape(op, "gaussian", 3, 40000, "bfloat16")
    providers = cases.case(op).providers("cuda")
    ours = {name: providers[name] for name in (cases.OURS, cases.FLOOR) if name in providers}
    journal = Journal(tmp_path / "bench.jsonl", FACTS)
    deadline = Deadline(time.monotonic() + 300)
    gpu_bench._run_case(shape, ours, journal, CudaTimer(seconds=0.01), deadline)
    for name, timed in journal.of(shape).items():
        assert timed["check"] == OK or providers[name].unchecked
        assert (timed["graph"] == "yes") == (not providers[name].waits)
        assert 0 < timed["microseconds"]["median"] <= timed["call_microseconds"]["median"] * 1.5

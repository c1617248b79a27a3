"""Every kind of bad input to an op gets one sentence: op, argument, requirement, what arrived."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import autodeco_ext
from autodeco_ext import _arguments

INF = float("inf")
NAN = float("nan")
LOGITS = torch.zeros(3, 4)


def bad_row(value: float) -> torch.Tensor:
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    return logits


Case = tuple[str, dict[str, Any], type[Exception], str]

# What is refused without looking at a value inside a tensor.
ARGUMENT_CASES: list[Case] = [
    ("a huge integer", {"temperature": 10**400}, ValueError, "in the range of a float"),
    ("not a tensor", {"logits": [1.0]}, TypeError, "logits must be a torch.Tensor, got list"),
    (
        "no dimension",
        {"logits": torch.tensor(1.0)},
        ValueError,
        "logits must have at least one dim",
    ),
    (
        "no column",
        {"logits": torch.zeros(2, 0)},
        ValueError,
        "at least one column, got shape [2, 0]",
    ),
    ("integers", {"logits": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "must be float32"),
    ("float64", {"logits": torch.zeros(2, 3, dtype=torch.float64)}, ValueError, "must be float32"),
    ("strided", {"logits": torch.zeros(4, 3).t()}, ValueError, "vocabulary stride of 1, got 3"),
    (
        "too wide",
        {"logits": torch.zeros(1, 2**20 + 1)},
        ValueError,
        "must have at most 1048576 columns, got 1048577",
    ),
    (
        "negative T",
        {"temperature": -0.1},
        ValueError,
        "temperature must be finite and >= 0, got -0.1",
    ),
    ("nan T", {"temperature": NAN}, ValueError, "temperature must be a number, got nan"),
    (
        "infinite T",
        {"temperature": INF},
        ValueError,
        "temperature must be finite and >= 0, got inf",
    ),
    ("overflowing T", {"temperature": 1e39}, ValueError, "temperature must be finite"),
    (
        "sparse",
        {"logits": torch.zeros(2, 3).to_sparse()},
        TypeError,
        "logits must be a dense tensor",
    ),
    (
        "text T",
        {"temperature": "1"},
        TypeError,
        "temperature must be a number or a tensor, got str",
    ),
    (
        "bool T",
        {"temperature": True},
        TypeError,
        "temperature must be a number or a tensor, got bool",
    ),
    (
        "short T",
        {"temperature": torch.ones(2)},
        ValueError,
        "temperature must have a shape that broadcasts to [3], got [2]",
    ),
    (
        "deep T",
        {"temperature": torch.ones(1, 3)},
        ValueError,
        "temperature must have a shape that broadcasts to [3], got [1, 3]",
    ),
    ("complex T", {"temperature": torch.ones(3, dtype=torch.complex64)}, TypeError, "real numbers"),
    ("nan P", {"top_p": NAN}, ValueError, "top_p must be a number, got nan"),
    ("negative k", {"top_k": -1}, ValueError, "top_k must be >= 0, got -1"),
    ("fractional k", {"top_k": 2.5}, TypeError, "top_k must be an integer or a tensor, got float"),
    ("float tensor k", {"top_k": torch.ones(3)}, TypeError, "top_k must be integers"),
    ("nan min_p", {"min_p": NAN}, ValueError, "min_p must be a number, got nan"),
    ("valid_vocab 0", {"valid_vocab": 0}, ValueError, "valid_vocab must be >= 1, got 0"),
]

# Invalid rows. On CUDA only `sample` with check=True looks for them.
ROW_CASES: list[Case] = [
    (
        "negative T in a row",
        {"temperature": torch.tensor([1.0, -1.0, 1.0])},
        ValueError,
        "temperature must be finite and >= 0, got -1 in row 1",
    ),
    (
        "infinite T in a row",
        {"temperature": torch.tensor([1.0, 1.0, INF])},
        ValueError,
        "temperature must be finite and >= 0, got inf in row 2",
    ),
    ("nan P in a row", {"top_p": torch.tensor([NAN, 1.0, 1.0])}, ValueError, "got nan in row 0"),
    (
        "negative k in a row",
        {"top_k": torch.tensor([1, -3, 1])},
        ValueError,
        "top_k must be >= 0, got -3 in row 1",
    ),
    ("nan min_p in a row", {"min_p": torch.full((3,), NAN)}, ValueError, "min_p must be a number"),
    (
        "valid_vocab 0 in a row",
        {"valid_vocab": torch.tensor([4, 4, 0])},
        ValueError,
        "valid_vocab must be >= 1, got 0 in row 2",
    ),
    ("nan logit", {"logits": bad_row(NAN)}, ValueError, "must not contain NaN, got NaN in row 1"),
    ("+inf logit", {"logits": bad_row(INF)}, ValueError, "must be below +inf, got +inf in row 1"),
    (
        "nothing finite",
        {"logits": torch.full((2, 5), -INF)},
        ValueError,
        "must have a finite value among the valid columns, got none in row 0",
    ),
]

ONLY_SAMPLE = [
    (
        "seed and generator",
        {"seed": 1, "generator": torch.Generator()},
        ValueError,
        "seed must be None when a generator is given, got both",
    ),
    (
        "short seed",
        {"seed": torch.tensor([1, 2])},
        ValueError,
        "seed must have a shape that broadcasts to [3], got [2]",
    ),
    ("float seed", {"seed": 1.5}, TypeError, "seed must be an integer or a tensor, got float"),
    ("float offset", {"offset": torch.ones(3)}, TypeError, "offset must be integers"),
    ("no samples", {"num_samples": 0}, ValueError, "num_samples must be in [1, 2^32 - 1], got 0"),
    (
        "samples",
        {"num_samples": 1.0},
        TypeError,
        "num_samples must be an integer or None, got float",
    ),
    ("many samples", {"num_samples": 2**70}, ValueError, "num_samples must be in [1, 2^32 - 1]"),
    ("generator", {"generator": 5}, TypeError, "generator must be a torch.Generator, got 5"),
    ("check", {"check": "no"}, TypeError, "check must be a bool or None, got 'no'"),
    ("return_info", {"return_info": "no"}, TypeError, "return_info must be a bool, got 'no'"),
    ("bool seeds", {"seed": torch.ones(3).bool()}, TypeError, "seed must be integers, got torch.b"),
]


def parameters(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def of_stats(cases: Iterable[Case]) -> list[Case]:
    """The cases whose arguments `distribution_stats` has."""
    return [case for case in cases if case[1].keys() <= {"logits", "temperature"}]


def expect(
    op: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    pattern = f"^autodeco_ext.{op.__name__}: .*{re.escape(text)}"
    with pytest.raises(error, match=pattern) as caught:
        op(**{"logits": LOGITS, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    parameters(ARGUMENT_CASES + ROW_CASES + ONLY_SAMPLE),
)
def test_sample_refuses(
    op_device: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(autodeco_ext.sample, arguments, error, text)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        *parameters(ARGUMENT_CASES),
        pytest.param(
            {"out": torch.zeros(3, 5)}, ValueError, "out must have shape [3, 4], got [3, 5]"
        ),
        pytest.param({"out": torch.zeros(3, 4).half()}, ValueError, "out must be float32"),
        pytest.param(
            {"out": torch.zeros(4, 3).t()}, ValueError, "out must have a vocabulary stride"
        ),
        pytest.param({"out": 3}, TypeError, "out must be a torch.Tensor, got int"),
        pytest.param({"filter_value": NAN}, ValueError, "filter_value must be a number, got nan"),
        pytest.param(
            {"logits": torch.zeros(2, 3, requires_grad=True)},
            ValueError,
            "logits must not require grad",
        ),
    ],
)
def test_filter_logits_refuses(
    op_device: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(autodeco_ext.filter_logits, arguments, error, text)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        *parameters(ARGUMENT_CASES + ROW_CASES),
        pytest.param({"capacity": -1}, ValueError, "capacity must be >= 0, got -1"),
        pytest.param(
            {"capacity": 2.0}, TypeError, "capacity must be an integer or None, got float"
        ),
        pytest.param(
            {"capacity": True}, TypeError, "capacity must be an integer or None, got bool"
        ),
        pytest.param({"check": "no"}, TypeError, "check must be a bool or None, got 'no'"),
    ],
)
def test_kept_indices_refuses(
    op_device: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(autodeco_ext.kept_indices, arguments, error, text)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        *parameters(case for case in of_stats(ARGUMENT_CASES) if case[0] != "too wide"),
        pytest.param(
            {"logits": torch.zeros(2, 3, requires_grad=True)},
            ValueError,
            "logits must not require grad",
        ),
    ],
)
def test_distribution_stats_refuses(
    op_device: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(autodeco_ext.distribution_stats, arguments, error, text)


@pytest.mark.parametrize(("arguments", "error", "text"), parameters(ROW_CASES))
def test_filter_logits_refuses_invalid_rows_on_the_cpu(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(autodeco_ext.filter_logits, arguments, error, text)


@pytest.mark.parametrize(("arguments", "error", "text"), parameters(of_stats(ROW_CASES)))
def test_distribution_stats_refuses_invalid_rows_on_the_cpu(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(autodeco_ext.distribution_stats, arguments, error, text)


def test_a_parameter_on_another_device_is_refused(device: torch.device) -> None:
    logits = LOGITS.to(device)
    elsewhere = torch.ones(3, device="meta")
    for op in (autodeco_ext.sample, autodeco_ext.filter_logits, autodeco_ext.distribution_stats):
        expect(
            op,
            {"logits": logits, "temperature": elsewhere},
            ValueError,
            f"temperature must be on {logits.device}, got meta",
        )


def test_without_check_invalid_rows_are_visible_and_harm_no_other(backend: str) -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    alone = autodeco_ext.sample(logits, 0.9, 0.9, seed=torch.arange(5), return_info=True)
    logits[1, 3] = NAN
    logits[3] = -INF
    info = autodeco_ext.sample(
        logits, 0.9, 0.9, seed=torch.arange(5), return_info=True, check=False, num_samples=2
    )
    assert info.valid.tolist() == [True, False, True, False, True]
    assert info.tokens[1].tolist() == info.tokens[3].tolist() == [-1, -1]
    assert info.kept.tolist()[1] == 0
    assert info.logprobs[3].isnan().all()
    assert torch.equal(info.tokens[::2, 0], alone.tokens[::2])


def test_bad_values_beyond_valid_vocab_do_not_matter(op_device: str) -> None:
    logits = torch.zeros(2, 6)
    logits[:, 4:] = NAN
    assert (autodeco_ext.sample(logits, seed=1, valid_vocab=4) < 4).all()


@pytest.mark.parametrize(
    "logits",
    [
        torch.tensor(1.0),
        torch.zeros(2, 0),
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(4, 3).t(),
        torch.zeros(1, 2**20 + 1),
    ],
    ids=["no dimension", "no column", "integers", "strided", "too wide"],
)
def test_tracing_refuses_with_the_sentence_of_running(logits: torch.Tensor) -> None:
    sentences = []
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError) as caught:
            autodeco_ext.sample(logits.to(device), seed=1)
        sentences.append(str(caught.value))
    running, tracing = (sentence.lower().replace("torch.", "") for sentence in sentences)
    assert running.replace("long", "int64") == tracing


def test_a_nan_temperature_is_called_nan(op_device: str) -> None:
    with pytest.raises(ValueError, match=r"got nan in row 0$"):
        autodeco_ext.sample(LOGITS, torch.full((3,), -NAN), seed=1)


def test_out_of_range_scalars_are_refused_for_zero_rows_too(op_device: str) -> None:
    with pytest.raises(ValueError, match="temperature must be finite"):
        autodeco_ext.sample(torch.zeros(0, 4), -1.0)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("cuda:0", "logits must be on the CPU, got cuda:0: no nvcc found"),
        ("xpu:0", "logits must be on the CPU or CUDA, got xpu:0"),
    ],
)
@pytest.mark.parametrize(
    "op", [autodeco_ext.sample, autodeco_ext.filter_logits, autodeco_ext.distribution_stats]
)
def test_a_device_without_kernels_gets_a_sentence(
    op: Callable[..., Any], device: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_arguments, "WHY_NO_CUDA", "no nvcc found")
    # Tracing has tensors on devices that are not there.
    with FakeTensorMode():
        expect(op, {"logits": torch.empty(2, 3, device=device)}, ValueError, text)


def test_a_generator_of_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_arguments, "WHY_NO_CUDA", "")
    with FakeTensorMode():
        given = {"logits": torch.empty(2, 3, device="cuda:0"), "generator": torch.Generator()}
        text = "generator must be on cuda:0, got cpu"
        expect(autodeco_ext.sample, given, ValueError, text)


def test_rows_are_not_looked_at_on_cuda_unless_asked() -> None:
    on_cuda = SimpleNamespace(device=torch.device("cuda:0"))
    assert [_arguments.checks_rows("sample", check, on_cuda) for check in (None, True, False)] == [
        False,
        True,
        False,
    ]
    assert _arguments.checks_rows("sample", None, LOGITS)

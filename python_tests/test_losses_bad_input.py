"""Bad input to the loss ops, and the ops inside torch: opcheck, compile, double backward."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from loss_judge import IGNORE, LossResults, random_arguments, run_losses
from loss_oracle import MEGATRON

import autodeco_ext

INF, NAN = float("inf"), float("nan")
OPS = torch.ops.autodeco_ext
BOTH = ("autodeco_loss", "soft_top_p_loss")


def arguments(**changes: Any) -> dict[str, Any]:
    """Three good rows of four columns, and what a case changes."""
    good = {
        "logits": torch.arange(12.0).view(3, 4),
        "temperature": torch.ones(3),
        "top_p": torch.full((3,), 0.5),
        "labels": torch.tensor([0, 3, IGNORE]),
    }
    return good | changes


def with_value(name: str, value: float, row: int = 1) -> dict[str, Any]:
    """A bad value in one row."""
    tensor = arguments()[name].clone()
    tensor[row, ...] = value if name != "logits" else tensor[row]
    if name == "logits":
        tensor[row, 2] = value
    return {name: tensor}


Case = tuple[str, dict[str, Any], type[Exception], str]

# What is refused without looking at a value inside a tensor.
ARGUMENT_CASES: list[Case] = [
    ("not a tensor", {"logits": [1.0]}, TypeError, "logits must be a torch.Tensor, got list"),
    ("float64", {"logits": torch.zeros(3, 4).double()}, ValueError, "logits must be float32"),
    ("no dimension", {"logits": torch.tensor(1.0)}, ValueError, "logits must have at least one"),
    ("no column", {"logits": torch.zeros(3, 0)}, ValueError, "at least one column"),
    ("strided", {"logits": torch.zeros(4, 3).t()}, ValueError, "vocabulary stride of 1, got 3"),
    ("wide", {"logits": torch.zeros(3, 2**20 + 1)}, ValueError, "at most 1048576 columns"),
    (
        "short T",
        {"temperature": torch.ones(2)},
        ValueError,
        "temperature must have shape [3], got [2]",
    ),
    ("scalar T", {"temperature": 1.0}, TypeError, "temperature must be a torch.Tensor, got float"),
    ("deep P", {"top_p": torch.ones(3, 1)}, ValueError, "top_p must have shape [3], got [3, 1]"),
    (
        "short labels",
        {"labels": torch.zeros(2).long()},
        ValueError,
        "labels must have shape [3], got [2]",
    ),
    ("float labels", {"labels": torch.zeros(3)}, TypeError, "labels must be"),
    (
        "bool labels",
        {"labels": torch.zeros(3).bool()},
        TypeError,
        "labels must be integers, got torch.bool",
    ),
    ("bool T", {"temperature": torch.ones(3).bool()}, TypeError, "temperature must be real"),
    (
        "drop",
        {"drop_uniform": torch.ones(3, 2), "variant": "megatron"},
        ValueError,
        "drop_uniform must have shape [3], got [3, 2]",
    ),
    (
        "variant",
        {"variant": "other"},
        ValueError,
        "variant must be 'released' or 'megatron', got 'other'",
    ),
    (
        "cumulative",
        {"cumulative": "half"},
        ValueError,
        "cumulative must be 'inclusive' or 'exclusive', got 'half'",
    ),
    (
        "reduction",
        {"reduction": "max"},
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got 'max'",
    ),
    ("steepness", {"steepness": -1.0}, ValueError, "steepness must be finite and >= 0, got -1"),
    ("nan steepness", {"steepness": NAN}, ValueError, "steepness must be"),
    ("text steepness", {"steepness": "30"}, TypeError, "steepness must be a number, got str"),
    ("mass_eps", {"mass_eps": -1e-9}, ValueError, "mass_eps must be finite and >= 0"),
    ("eps", {"probability_eps": INF}, ValueError, "probability_eps must be finite and >= 0"),
    ("clamp", {"top_p_temperature_clamp": -1.0}, ValueError, "top_p_temperature_clamp must be"),
    (
        "clamp beyond float32",
        {"top_p_temperature_clamp": 1e39},
        ValueError,
        "top_p_temperature_clamp must be in the range of float32, got 1e+39",
    ),
    ("drop rate", {"easy_token_drop": 1.5}, ValueError, "easy_token_drop must be in [0, 1]"),
    ("ignore_index", {"ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
    (
        "huge ignore_index",
        {"ignore_index": 1 << 70},
        ValueError,
        f"ignore_index must be in the range of int64, got {1 << 70}",
    ),
    ("drop, no use", {"drop_uniform": "x"}, TypeError, "drop_uniform must be a torch.Tensor, got"),
    (
        "drop, off",
        {"drop_uniform": torch.ones(2), "easy_token_drop": 0.0},
        ValueError,
        "drop_uniform must have shape [3], got [2]",
    ),
    ("check", {"check": "no"}, TypeError, "check must be a bool or None, got 'no'"),
]

# Invalid rows, each of which is row 1.
ROW_CASES: list[Case] = [
    ("nan logit", with_value("logits", NAN), ValueError, "logits must not contain NaN, got NaN"),
    ("+inf logit", with_value("logits", INF), ValueError, "logits must be below +inf, got +inf"),
    (
        "nothing finite",
        {"logits": arguments()["logits"].index_fill(0, torch.tensor(1), -INF)},
        ValueError,
        "got none in row 1",
    ),
    ("nan T", with_value("temperature", NAN), ValueError, "temperature must be"),
    ("infinite T", with_value("temperature", INF), ValueError, "temperature must be"),
    ("negative T", with_value("temperature", -0.5), ValueError, "temperature must be"),
    (
        "zero T without a clamp",
        with_value("temperature", 0.0) | {"variant": "megatron"},
        ValueError,
        "temperature must be",
    ),
    ("nan P", with_value("top_p", NAN), ValueError, "top_p must be in [0, 1], got nan"),
    ("P above 1", with_value("top_p", 1.5), ValueError, "top_p must be in [0, 1], got 1.5"),
    (
        "P one float above 1",
        with_value("top_p", 1 + 2**-23),
        ValueError,
        "top_p must be in [0, 1], got 1.0000001",
    ),
    ("P below 0", with_value("top_p", -0.1), ValueError, "top_p must be in [0, 1], got -0.1"),
    ("large label", with_value("labels", 4), ValueError, "or ignore_index, got 4"),
    ("negative label", with_value("labels", -1), ValueError, "or ignore_index, got -1"),
    ("huge label", with_value("labels", 2**62), ValueError, f"or ignore_index, got {2**62}"),
]


def expect(op: str, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^autodeco_ext.{op}: .*{re.escape(text)}") as caught:
        getattr(autodeco_ext, op)(**arguments(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize(
    ("changes", "error", "text"), [pytest.param(*case[1:], id=case[0]) for case in ARGUMENT_CASES]
)
def test_bad_arguments_are_explained(
    op_device: str, op: str, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(op, changes, error, text)


def test_a_clamp_beyond_float32_is_refused_as_it_would_be_infinite() -> None:
    largest = torch.finfo(torch.float32).max
    assert autodeco_ext.autodeco_loss(**arguments(), temperature_clamp=largest).loss.isfinite()
    text = "temperature_clamp must be in the range of float32, got 1e+39"
    expect("autodeco_loss", {"temperature_clamp": 1e39}, ValueError, text)


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("name", ["temperature", "top_p", "labels", "drop_uniform"])
def test_tensors_on_another_device_are_refused(op: str, name: str) -> None:
    good = arguments(drop_uniform=torch.ones(3))
    expect(op, {name: good[name].to("meta")}, ValueError, f"{name} must be on cpu, got meta")


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize(
    ("changes", "error", "text"), [pytest.param(*case[1:], id=case[0]) for case in ROW_CASES]
)
def test_invalid_rows_are_named(
    op_device: str, op: str, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    expect(op, changes, error, text)
    with pytest.raises(error, match=r"in row 1$"):
        getattr(autodeco_ext, op)(**arguments(**changes))


@pytest.mark.parametrize(
    "changes", [pytest.param(case[1], id=case[0]) for case in ROW_CASES if "variant" not in case[1]]
)
def test_without_check_an_invalid_row_is_nan_and_harms_no_other(
    backend: str, changes: dict[str, Any]
) -> None:
    good = run_losses(**arguments(), with_logits=True)
    got = run_losses(**arguments(**changes), with_logits=True, check=False)
    for name, value in got._asdict().items():
        assert value[1].isnan().all(), name
        others = torch.tensor([0, 2])
        assert torch.equal(value[others], getattr(good, name)[others]), name


@pytest.mark.parametrize("column", [0, 1, 63, 64, 500, 998, 999])
def test_a_bad_logit_is_found_wherever_it_is(backend: str, column: int) -> None:
    logits, *others = random_arguments("gaussian", 1, 1000)
    for value in (NAN, INF):
        logits[0, column] = value
        got = run_losses(logits, *others, with_logits=True, check=False)
        assert all(result.isnan().all() for result in got)


def test_bad_values_beside_ignored_and_dropped_rows_are_still_found(backend: str) -> None:
    # An easy token is known only from its row: a bad one is an error though it would not count.
    changes = with_value("logits", NAN) | {"drop_uniform": torch.zeros(3), "variant": "megatron"}
    expect("autodeco_loss", changes, ValueError, "must not contain NaN, got NaN in row 1")


def row_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    logits, temperature, top_p, labels = random_arguments("peaked", 4, 37, dtype)
    labels[2] = IGNORE
    options = (False, False, 30.0, 0.01, 1e-8, 1e-9, 1e-9)
    return logits, temperature, top_p, labels, torch.linspace(0, 1, 4), 0.6, IGNORE, *options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_opcheck(device: torch.device, dtype: torch.dtype) -> None:
    inputs = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in row_arguments(dtype))
    differentiable = (
        *(x.clone().requires_grad_() for x in inputs[:3]),
        *inputs[3:],
    )
    for each in (inputs, differentiable):
        torch.library.opcheck(OPS.autodeco_loss_rows, (*each, True))
    counted = OPS.autodeco_loss_rows(*inputs, True)[2]
    upstream = torch.rand(2, 4, device=device)
    torch.library.opcheck(
        OPS.autodeco_loss_logits_gradient, (*inputs[:4], counted, upstream, *inputs[7:])
    )


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_the_gradient_op_names_itself_in_its_errors_in_tracing_too(kind: str) -> None:
    inputs = [
        x.to(kind) if isinstance(x, torch.Tensor) else x for x in row_arguments(torch.float32)
    ]
    inputs[1] = inputs[1][:2]
    counted = torch.ones(2, 4, dtype=torch.bool, device=kind)
    named = r"^autodeco_ext\.autodeco_loss_logits_gradient: temperature"
    with pytest.raises((RuntimeError, ValueError), match=named):
        OPS.autodeco_loss_logits_gradient(*inputs[:4], counted, counted.float(), *inputs[7:])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"variant": "megatron", "reduction": "sum"}])
def test_a_full_graph_compile_equals_eager(device: torch.device, options: dict[str, Any]) -> None:
    made = [x.to(device) for x in random_arguments("gaussian", 8, 100)]
    drop = torch.linspace(0, 1, 8, device=device)

    def step(logits, temperature, top_p, labels):
        losses = autodeco_ext.autodeco_loss(
            2 * logits, temperature, top_p, labels, drop_uniform=drop, **options
        )
        return losses.loss, losses.top_p_loss

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in made[:3]]
        losses = run(*leaves, made[3])
        losses[0].backward()
        results.append([*(loss.detach() for loss in losses), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-9)


def test_double_backward_says_that_there_is_none(backend: str) -> None:
    logits, temperature, top_p, labels = random_arguments("gaussian", 3, 20)
    for leaf in (temperature, top_p, logits):
        leaves = [x.clone() for x in (logits, temperature, top_p)]
        place = [x is leaf for x in (logits, temperature, top_p)].index(True)
        leaves[place].requires_grad_()
        loss = autodeco_ext.soft_top_p_loss(*leaves, labels)
        with pytest.raises(RuntimeError, match=r"autodeco_ext.*(twice|double|second)"):
            (gradient,) = torch.autograd.grad(loss, leaves[place], create_graph=True)
            gradient.square().sum().backward()


def test_without_gradients_nothing_is_recorded(backend: str) -> None:
    made = random_arguments("gaussian", 3, 20)
    leaves = [x.clone().requires_grad_() for x in made[:3]]
    with torch.no_grad():
        loss = autodeco_ext.soft_top_p_loss(*leaves, made[3])
    assert not loss.requires_grad
    with torch.inference_mode():
        assert torch.equal(autodeco_ext.soft_top_p_loss(*made), loss)
    leaves[1].requires_grad_(False)
    autodeco_ext.soft_top_p_loss(*leaves, made[3]).backward()
    assert [leaf.grad is None for leaf in leaves] == [False, True, False]


def test_nothing_is_written_into_the_arguments(backend: str) -> None:
    made = random_arguments("masked", 5, 300)
    before = [x.clone() for x in made]
    got = run_losses(*made, MEGATRON, with_logits=True)
    assert isinstance(got, LossResults)
    assert all(torch.equal(x, y) for x, y in zip(made, before, strict=True))

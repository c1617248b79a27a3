"""AutoDecoHeads.predict and its op `predict_parameters`: both heads without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from heads_case import make_heads, make_input
from oracle import ROW_KINDS, assert_close

from autodeco_ext import reference
from autodeco_ext.models import AutoDecoHeads

OP = torch.ops.autodeco_ext.predict_parameters
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
)


def expected_of(heads: AutoDecoHeads, hidden: torch.Tensor, logits: torch.Tensor, **options):
    return reference.head_predictions(hidden.double(), logits, heads.state_dict(), **options)


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predictions_are_those_of_the_reference(cpu_backend: str, kind: str, dtype) -> None:
    heads = make_heads(scale=2.0)
    for vocab in (1, 3, 17, 1000, 32003):
        hidden, logits = make_input(6, vocab=vocab, kind=kind, dtype=dtype)
        got, expected = heads.predict(hidden, logits), expected_of(heads, hidden, logits)
        assert_close(got.temperature, expected.temperature, "heads", "temperature")
        assert_close(got.top_p, expected.top_p, "heads", "top_p")


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("enhanced", [True, False])
def test_every_shape_is_accepted_and_kept(device, shape, enhanced: bool) -> None:
    heads = make_heads(device, use_enhanced_features=enhanced)
    hidden, logits = make_input(*shape, device=device)
    got = heads.predict(hidden, logits)
    expected = expected_of(heads, hidden, logits, enhanced=enhanced)
    for name in ("temperature", "top_p"):
        value = getattr(got, name)
        assert value.shape == shape and value.dtype == torch.float32
        assert_close(value, getattr(expected, name), "heads", name)


@pytest.mark.parametrize("widths", [(1, 1), (7, 700), (513, 16)])
def test_heads_may_have_any_width(cpu_backend: str, widths: tuple[int, int]) -> None:
    sizes = {"temperature_hidden_size": widths[0], "top_p_hidden_size": widths[1]}
    heads = make_heads(scale=2.0, **sizes)
    hidden, logits = make_input(4)
    got, expected = heads.predict(hidden, logits), expected_of(heads, hidden, logits)
    assert_close(got.temperature, expected.temperature, "heads", "temperature")
    assert_close(got.top_p, expected.top_p, "heads", "top_p")


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_saturated_heads_reach_the_ends_of_their_range(device, scale: float) -> None:
    heads = make_heads(device, scale=scale)
    hidden, logits = make_input(64, device=device)
    got = heads.predict(hidden, logits)
    assert got.temperature.min() == 0 and got.temperature.max() == 2
    assert ((got.top_p >= 0) & (got.top_p <= 1)).all()
    # At T = 0 the features are those of a distribution with all its mass on the largest logit.
    expected = expected_of(heads, hidden, logits)
    certain = (expected.top_p - 0.5).abs() > 0.499
    assert (got.top_p[certain].double() - expected.top_p[certain]).abs().max() < 1e-2


def test_forward_agrees_with_and_without_a_gradient(device) -> None:
    heads = make_heads(device, scale=2.0)
    hidden, logits = make_input(2, 3, device=device)
    with_gradient = heads(hidden, logits)
    assert with_gradient.temperature.requires_grad and with_gradient.top_p.requires_grad
    predicted = heads.predict(hidden, logits)
    assert not predicted.temperature.requires_grad and not predicted.top_p.requires_grad
    assert_close(predicted.temperature, with_gradient.temperature, "heads", "temperature")
    assert_close(predicted.top_p, with_gradient.top_p, "heads", "top_p")
    with torch.no_grad():
        assert torch.equal(heads(hidden, logits).top_p, predicted.top_p)
    frozen = heads.requires_grad_(False)
    assert torch.equal(frozen(hidden, logits).top_p, predicted.top_p)
    hidden.requires_grad_()
    assert frozen(hidden, logits).temperature.requires_grad


def test_a_head_that_is_off_or_not_needed_predicts_one(device) -> None:
    hidden, logits = make_input(4, device=device)
    only_p = make_heads(device, enable_temperature_head=False).predict(hidden, logits)
    assert (only_p.temperature == 1).all() and (only_p.top_p != 1).all()
    heads = make_heads(device, enable_top_p_head=False)
    only_t = heads.predict(hidden, logits)
    assert (only_t.top_p == 1).all() and (only_t.temperature != 1).all()
    both = make_heads(device)
    assert torch.equal(
        both.predict(hidden, logits, needs_top_p=False).temperature,
        both.predict(hidden, logits).temperature,
    )
    assert (both.predict(hidden, logits, needs_top_p=False).top_p == 1).all()
    with pytest.raises(TypeError, match="AutoDecoHeads: needs_top_p must be a bool, got 'no'"):
        both.predict(hidden, logits, needs_top_p="no")
    off = {"enable_temperature_head": False, "enable_top_p_head": False}
    neither = make_heads(device, **off).predict(hidden, logits)
    assert [value.tolist() for value in neither] == [[1.0] * 4] * 2


@pytest.mark.parametrize(
    "options", [{"use_enhanced_features": False}, {"enable_top_p_head": False}]
)
def test_logits_that_no_head_needs_are_not_looked_at(device, options: dict) -> None:
    heads = make_heads(device, **options)
    hidden, logits = make_input(4, device=device)
    nothing = torch.full_like(logits, torch.nan)
    got, expected = heads.predict(hidden, nothing, check=True), heads.predict(hidden, logits)
    assert torch.equal(got.temperature, expected.temperature)
    assert torch.equal(got.top_p, expected.top_p)


def test_weights_that_change_in_place_are_seen(device) -> None:
    heads = make_heads(device)
    hidden, logits = make_input(3, device=device)
    before = heads.predict(hidden, logits)
    for parameter in heads.parameters():
        parameter.data.mul_(1.5)  # leaves no trace in the parameter's version
    after, expected = heads.predict(hidden, logits), expected_of(heads, hidden, logits)
    assert (after.top_p != before.top_p).all()
    assert_close(after.temperature, expected.temperature, "heads", "temperature")
    assert_close(after.top_p, expected.top_p, "heads", "top_p")


def test_autocast_and_reduced_precision_do_not_count(device) -> None:
    heads = make_heads(device)
    hidden, logits = make_input(64, device=device)
    expected = heads.predict(hidden, logits)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(heads.predict(hidden, logits).temperature, expected.temperature)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(heads.predict(hidden, logits).temperature, expected.temperature)
    finally:
        torch.set_float32_matmul_precision(before)


def op_arguments(rows: int = 4, vocab: int = 300, device="cpu", **changes: Any) -> dict[str, Any]:
    """Arguments of the registered op, the features' weights a view as in a head."""
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device)

    arguments = {
        "logits": 3 * normal(rows, vocab),
        "temperature_product": normal(rows, 20),
        "temperature_first_bias": normal(20),
        "temperature_second_weight": 0.3 * normal(1, 20),
        "temperature_second_bias": normal(1),
        "top_p_product": normal(rows, 30),
        "top_p_feature_weight": normal(30, 16)[:, 11:],
        "top_p_first_bias": normal(30),
        "top_p_second_weight": 0.3 * normal(1, 30),
        "top_p_second_bias": normal(1),
        "check": True,
    }
    return arguments | changes


def call(arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return OP(*arguments.values())


def test_a_row_does_not_see_its_batch(
    cpu_backend: str, set_num_threads: Callable[[int], None]
) -> None:
    arguments = op_arguments(33, 10_001)
    temperature, top_p = call(arguments)
    set_num_threads(3)
    threaded = call(arguments)
    assert torch.equal(threaded[0], temperature) and torch.equal(threaded[1], top_p)
    per_row = ("logits", "temperature_product", "top_p_product")
    alone = call(arguments | {name: arguments[name][9:10] for name in per_row})
    assert torch.equal(alone[0], temperature[9:10]) and torch.equal(alone[1], top_p[9:10])


def test_invalid_rows_are_named_or_nan_and_leave_the_others_alone(device) -> None:
    heads = make_heads(device)
    hidden, logits = make_input(6, device=device)
    expected = heads.predict(hidden, logits)
    hidden[1, 3] = torch.nan
    logits[2, 5], logits[3, 7], logits[4] = torch.nan, torch.inf, -torch.inf
    got = heads.predict(hidden, logits, check=False)
    # T depends on the hidden states alone.
    assert got.temperature.isnan().tolist() == [False, True, False, False, False, False]
    assert got.top_p.isnan().tolist() == [False, True, True, True, True, False]
    good = torch.tensor([0, 5], device=device)
    assert torch.equal(got.top_p[good], expected.top_p[good])
    reasons = {
        1: "hidden_states must give a temperature that is finite and >= 0, got nan",
        2: "logits must not contain NaN, got NaN",
        3: r"logits must be below \+inf, got \+inf",
        4: "logits must have a finite value among the valid columns, got none",
    }
    for row, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"^autodeco_ext.AutoDecoHeads: {reason} in row 0$"):
            heads.predict(hidden[row:], logits[row:], check=True)
    with pytest.raises(ValueError, match=r"in row 1$"):
        heads.predict(hidden, logits, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("absent", [None, "temperature", "top_p"])
def test_opcheck(device, dtype: torch.dtype, absent: str | None) -> None:
    arguments = op_arguments(device=device)
    arguments["logits"] = arguments["logits"].to(dtype)
    if absent is not None:
        arguments |= dict.fromkeys(name for name in arguments if name.startswith(absent + "_"))
    torch.library.opcheck(OP, tuple(arguments.values()), test_utils=CHECKS)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, "logits must be float32, bfloat16 or"),
    ({"logits": torch.zeros(300, 4).t()}, "logits must have a vocabulary stride of 1, got 4"),
    (
        {"logits": torch.zeros(1, 2**20 + 1).expand(4, -1)},
        "logits must have at most 1048576 columns, got 1048577",
    ),
    ({"logits": torch.zeros(4, 0)}, "logits must have at least one column, got shape [4, 0]"),
    (
        {"temperature_product": torch.tensor(1.0)},
        "temperature_product must have at least one dimension, got 0",
    ),
    (
        {"temperature_product": torch.zeros(5, 20)},
        "temperature_product must be contiguous with shape [4, 20], got shape [5, 20]",
    ),
    (
        {"top_p_product": torch.zeros(30, 4).t()},
        "top_p_product must be contiguous with shape [4, 30], got shape [4, 30]",
    ),
    ({"temperature_first_bias": None}, "temperature_first_bias must be given with the product of"),
    ({"top_p_second_weight": torch.zeros(1, 30).half()}, "top_p_second_weight must be float32"),
    (
        {"top_p_second_weight": torch.zeros(30)},
        "top_p_second_weight must be contiguous with shape [1, 30], got shape [30]",
    ),
    (
        {"temperature_second_bias": torch.zeros(2)},
        "temperature_second_bias must be contiguous with shape [1], got shape [2]",
    ),
    ({"top_p_feature_weight": None}, "top_p_feature_weight must be given with the product of its"),
    (
        {"top_p_feature_weight": torch.zeros(30, 4)},
        "top_p_feature_weight must have shape [30, 1] or [30, 5], got [30, 4]",
    ),
    (
        {"top_p_feature_weight": torch.zeros(5, 30).t()},
        "top_p_feature_weight must have a column stride of 1, got 30",
    ),
]


@pytest.mark.parametrize(("changes", "text"), BAD_ARGUMENTS)
def test_the_op_and_its_fake_refuse_the_same(changes: dict[str, Any], text: str) -> None:
    arguments = op_arguments(**changes)
    on_meta = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    for given, error in ((arguments, RuntimeError), (on_meta, ValueError)):
        with pytest.raises(error) as caught:
            call(given)
        assert str(caught.value).startswith("autodeco_ext.predict_parameters: " + text)

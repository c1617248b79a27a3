"""The benchmark cases of the losses: every result of theirs is judged."""

from __future__ import annotations

import pytest
import torch
from bench_records import SHAPE, use_small_base

from bench import cases, runner
from bench.providers import Provider, linear_losses
from bench.runner import FAIL, OK


@pytest.fixture(autouse=True)
def small_base(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_base(monkeypatch)


@pytest.mark.parametrize("quantity", range(4))
def test_each_quantity_of_a_loss_is_checked(quantity: int) -> None:
    inputs = runner.make_inputs(SHAPE._replace(op="autodeco_loss"), 1, "cpu")
    ours = cases.case("autodeco_loss").providers("cpu")[cases.OURS]

    def changed(*arguments: torch.Tensor) -> torch.Tensor:
        result = ours.run(*arguments)
        result[quantity] *= 1.001
        return result

    assert runner.verdict("autodeco_loss", ours, inputs) == OK
    assert runner.verdict("autodeco_loss", Provider(changed), inputs) == FAIL
    found = ours.errors(changed(*inputs.checked), *inputs.checked)
    assert max(found, key=found.get) == list(found)[quantity]
    assert max(found.values()) == pytest.approx(1e-3, rel=0.05)


def test_a_wrong_loss_is_told_with_its_error_and_without_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = cases.case("autodeco_loss")
    ours = case.providers("cpu")[cases.OURS]
    wrong = ours._replace(run=lambda *arguments: 1.001 * ours.run(*arguments))
    monkeypatch.setattr(case, "providers", lambda device: {cases.OURS: wrong})
    (record,) = runner.run_on_cpu(SHAPE._replace(op="autodeco_loss", vocab=40000), 0.001)
    assert record["check"] == FAIL and "microseconds" not in record
    assert max(record["errors"].values()) == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("op", ["linear_autodeco_loss", "head_training_step"])
@pytest.mark.parametrize("part", ["loss", "head_gradient"])
def test_loss_and_gradient_of_the_linear_loss_are_checked(part: str, op: str) -> None:
    shape = SHAPE._replace(op=op, distribution="gaussian")
    inputs = runner.make_inputs(shape, 1, "cpu")
    ours = cases.case(shape.op).providers("cpu")[cases.OURS]
    factors = (1.001, 1) if part == "loss" else (1, 1.001)

    def changed(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x * factor for x, factor in zip(ours.run(*arguments), factors, strict=True))

    assert runner.verdict(shape.op, ours, inputs) == OK
    assert runner.verdict(shape.op, Provider(changed), inputs) == FAIL
    assert ours.errors(changed(*inputs.checked), *inputs.checked)[part] == pytest.approx(1e-3, 0.05)


@pytest.mark.parametrize("op", ["linear_autodeco_loss", "head_training_step"])
def test_the_released_formula_is_right_by_chunks_too(op: str) -> None:
    shape = SHAPE._replace(op=op, distribution="gaussian5", rows=19)  # the last chunk is short
    inputs = runner.make_inputs(shape, 1, "cpu")
    providers = cases.case(op).providers("cpu")
    for name in ("released", "released chunked"):
        assert runner.verdict(op, providers[name], inputs) == OK


def test_every_step_of_training_begins_with_the_same_heads() -> None:
    shape = SHAPE._replace(op="head_training_step", distribution="gaussian", rows=40)
    inputs = runner.make_inputs(shape, 2, "cpu")
    providers = cases.case(shape.op).providers("cpu")
    step = providers[cases.OURS]
    heads = inputs.checked[2]
    before = [parameter.detach().clone() for parameter in heads.parameters()]
    first, second = step.run(*inputs.checked), step.run(*inputs.checked)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert all(torch.equal(*pair) for pair in zip(heads.parameters(), before, strict=True))
    # The base that is timed is the one whose hidden states the step has.
    assert runner.verdict(shape.op, providers["base forward"], inputs) == OK
    other_tokens = Provider(lambda *arguments: inputs.rounds[1][-1]())
    wrong = other_tokens._replace(is_right=providers["base forward"].is_right)
    assert runner.verdict(shape.op, wrong, inputs) == FAIL


def test_all_logits_are_not_made_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPE._replace(op="linear_autodeco_loss", distribution="gaussian")
    provider = cases.case(shape.op).providers("cpu")["released"]
    inputs = runner.make_inputs(shape, 1, "cpu")
    assert runner.verdict(shape.op, provider, inputs) == OK
    monkeypatch.setattr(linear_losses.os, "sysconf", lambda name: 300)  # 90 kB
    check = runner.verdict(shape.op, provider, inputs)
    assert check == "needs about 0.00015 GB, and 9e-05 GB are free"
    assert not runner.may_be_timed(check)

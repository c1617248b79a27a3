"""The losses under activation checkpointing and with saved tensors kept elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_loss_case import Case
from loss_judge import random_arguments
from tiny_models import IDS, tiny_autodeco
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import autodeco_ext


def linear_step(train_base: bool) -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    """The loss of its argument; that argument; what gets a gradient."""
    case = Case(bias=True)
    trained = list(case.heads.parameters())
    hidden = case.hidden.requires_grad_()
    if train_base:
        trained += [hidden, case.weight.requires_grad_(), case.bias.requires_grad_()]

    def step(hidden: Tensor) -> Tensor:
        return autodeco_ext.linear_autodeco_loss(
            hidden,
            case.weight,
            case.heads,
            case.labels,
            bias=case.bias,
            train_base=train_base,
            chunk_size=4,
        ).loss  # draws the easy tokens: checkpointing must put the generator back

    return step, hidden, trained


def logits_step(with_logits: bool) -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    logits, temperature, top_p, labels = random_arguments("gaussian", 6, 30)
    trained = [temperature.requires_grad_(), top_p.requires_grad_()]
    trained += [logits.requires_grad_()] if with_logits else []

    def step(logits: Tensor) -> Tensor:
        return autodeco_ext.autodeco_loss(2 * logits, temperature, top_p, labels).loss

    return step, logits, trained


STEPS = {
    "linear, frozen base": (linear_step, False),
    "linear, train_base": (linear_step, True),
    "from logits": (logits_step, False),
    "from logits that require grad": (logits_step, True),
}


@pytest.fixture(params=STEPS)
def step_of(request: pytest.FixtureRequest) -> tuple[Callable[[Tensor], Tensor], Tensor, list]:
    make, option = STEPS[request.param]
    return make(option)


def loss_and_gradients(run: Callable[[], Tensor], trained: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    loss = run()
    return [loss, *torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_loss_is_the_same(step_of: Any, use_reentrant: bool) -> None:
    step, given, trained = step_of
    expected = loss_and_gradients(lambda: step(given), trained)
    torch.manual_seed(3)
    given.requires_grad_()  # without it reentrant checkpointing records nothing
    loss = checkpoint(step, given, use_reentrant=use_reentrant)
    for leaf in trained:
        leaf.grad = None
    loss.backward()
    got = [loss, *(leaf.grad for leaf in trained)]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_backward_reads_what_it_saved_once(step_of: Any) -> None:
    step, given, trained = step_of
    packed, unpacked = [], []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    def unpack(number: int) -> Tensor:
        unpacked.append(number)
        return packed[number]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = step(given)
    torch.autograd.grad(loss, trained)
    assert len(unpacked) == len(set(unpacked)) and len(unpacked) > 3


def test_saved_tensors_may_lie_elsewhere(step_of: Any) -> None:
    step, given, trained = step_of
    expected = loss_and_gradients(lambda: step(given), trained)

    def offloaded() -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return step(given)

    got = loss_and_gradients(offloaded, trained)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def model_step(model: Any) -> list[Tensor]:
    trained = list(model.heads.parameters())
    return loss_and_gradients(lambda: model(IDS, labels=IDS).loss, trained)


@pytest.mark.parametrize("skip_logits", [True, False])
def test_a_checkpointed_model_trains_the_same(skip_logits: bool) -> None:
    model = tiny_autodeco().train()
    trained = list(model.heads.parameters())

    def step(ids: Tensor) -> Tensor:
        return model(ids, labels=ids, skip_logits=skip_logits).loss

    expected = loss_and_gradients(lambda: step(IDS), trained)
    got = loss_and_gradients(lambda: checkpoint(step, IDS, use_reentrant=False), trained)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


# Newer transformers have another name for it, older ones only this.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_of_a_frozen_base_is_accepted(use_reentrant: bool) -> None:
    model = tiny_autodeco().train()
    expected = model_step(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    got = model_step(model)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))

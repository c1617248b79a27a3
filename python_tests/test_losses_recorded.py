"""What autograd records of a loss: one node, or the op where a tracer must see it; both alike."""

from __future__ import annotations

import pytest
import torch
from loss_judge import IGNORE, random_arguments
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import autodeco_ext
from autodeco_ext import _loss_autograd
from autodeco_ext.reference import AutoDecoLoss


def losses_of(logits: Tensor, *others: Tensor, reduction: str = "mean") -> AutoDecoLoss:
    return autodeco_ext.autodeco_loss(*(logits, *others), easy_token_drop=0.0, reduction=reduction)


def example() -> tuple[list[Tensor], Tensor]:
    """Leaves and labels."""
    *leaves, labels = random_arguments("gaussian", 6, 30, seed=21)
    labels[2] = IGNORE
    return [leaf.requires_grad_() for leaf in leaves], labels


def weighted(losses: AutoDecoLoss, used: str) -> Tensor:
    """A number that depends on some of the three results."""
    results = {"loss": losses.loss, "temperature": 2 * losses.temperature_loss}
    results["top_p"] = -3 * losses.top_p_loss
    return sum((value.sum() for name, value in results.items() if name in used), torch.zeros(()))


@pytest.mark.parametrize(
    "used", ["loss", "temperature", "top_p", "loss top_p", "temperature top_p"]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_node_and_the_op_give_the_same(
    monkeypatch: pytest.MonkeyPatch, reduction: str, used: str
) -> None:
    results = []
    for of_op in (False, True):
        monkeypatch.setattr(_loss_autograd, "_is_transformed", lambda of_op=of_op: of_op)
        leaves, labels = example()
        losses = losses_of(*leaves, labels, reduction=reduction)
        is_node = "_LossesBackward" in type(losses.loss.grad_fn).__name__
        assert is_node is not of_op
        gradients = torch.autograd.grad(weighted(losses, used), leaves)
        results.append([*losses, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[:2])


def test_this_torch_has_the_names_that_it_does_not_promise() -> None:
    assert _loss_autograd._below_autograd is torch._C._AutoDispatchBelowAutograd
    assert _loss_autograd._is_transformed is torch._C._are_functorch_transforms_active


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_results_may_be_changed_in_place(reduction: str) -> None:
    leaves, labels = example()
    losses = losses_of(*leaves, labels, reduction=reduction)
    plain = torch.autograd.grad(losses.top_p_loss.sum(), leaves[1], retain_graph=True)[0]
    before = losses.temperature_loss.clone()
    losses.top_p_loss.mul_(2)
    assert torch.equal(losses.temperature_loss, before)
    torch.testing.assert_close(
        torch.autograd.grad(losses.top_p_loss.sum(), leaves[1])[0], 2 * plain
    )


def test_a_dispatch_mode_sees_the_op() -> None:
    seen: list[str] = []

    class Dispatches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    leaves, labels = example()
    with Dispatches():
        losses_of(*leaves, labels).loss.backward()
    assert seen.count("autodeco_ext.autodeco_loss_rows.default") == 1
    assert seen.count("autodeco_ext.autodeco_loss_logits_gradient.default") == 1


def test_tracers_and_transforms_see_the_op() -> None:
    leaves, labels = example()
    logits, temperature, top_p = (leaf.detach() for leaf in leaves)

    def step(temperature: Tensor) -> Tensor:
        return losses_of(logits, temperature, top_p, labels).loss

    assert "autodeco_ext.autodeco_loss_rows" in make_fx(step)(temperature).code
    traced = torch.jit.trace(step, temperature, check_trace=False)
    assert "autodeco_ext::autodeco_loss_rows" in str(traced.graph)
    assert torch.equal(traced(temperature), step(temperature))
    with pytest.raises(RuntimeError, match="setup_context"):  # torch's: it has no rule for them
        torch.func.grad(step)(temperature)


def test_vmap_maps_a_loss() -> None:
    leaves, labels = example()
    rows = [leaf.detach() for leaf in leaves]

    def loss_of_row(*row: Tensor) -> Tensor:
        return losses_of(*row).loss

    mapped = torch.vmap(loss_of_row)(*rows, labels)
    assert torch.equal(mapped, losses_of(*rows, labels, reduction="none").loss)

"""The losses without the dispatcher: what the registered op gives, where nobody would notice."""

from __future__ import annotations

import math

import pytest
import torch
from loss_judge import DTYPES, IGNORE, random_arguments
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import autodeco_ext
from autodeco_ext import _direct, _loss_autograd
from autodeco_ext.reference import AutoDecoLoss

ROWS, VOCAB = 6, 700


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, and leaves for T and P; one label is ignored."""
    logits, temperature, top_p, labels = random_arguments("gaussian", ROWS, VOCAB, dtype, seed=4)
    labels[3] = IGNORE
    return logits, temperature.requires_grad_(), top_p.requires_grad_(), labels


def shaped(leading: tuple[int, ...], values: tuple[Tensor, ...]) -> list[Tensor]:
    """The same rows; those of logits lie in a larger tensor."""
    logits, *of_rows = values
    count = math.prod(leading)
    wide = torch.zeros(*leading, VOCAB + 40, dtype=logits.dtype)
    wide[..., :VOCAB] = logits[:count].reshape(*leading, VOCAB)
    others = [value.detach()[:count].reshape(leading).clone() for value in of_rows]
    return [wide[..., :VOCAB], *(x.requires_grad_(x.is_floating_point()) for x in others)]


def losses_of(*values: Tensor, **options: object) -> AutoDecoLoss:
    return autodeco_ext.autodeco_loss(*values, **{"easy_token_drop": 0, **options})


@pytest.fixture
def direct_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each forward and each backward was direct."""
    calls: list[bool] = []

    def recorded(call):
        def record(*given):
            found = call(*given)
            calls.append(found is not None)
            return found

        return record

    for name in ("losses_directly", "loss_gradients_directly"):
        monkeypatch.setattr(_loss_autograd, name, recorded(getattr(_loss_autograd, name)))
    return calls


def dispatched(monkeypatch: pytest.MonkeyPatch, step, *given):
    with monkeypatch.context() as patch:
        patch.setattr(_direct, "_TAKES_TENSORS", False)
        return step(*given)


def results(values: list[Tensor], used: str, **options: object) -> list[Tensor]:
    """All losses, and the gradients of those that are used."""
    losses = losses_of(*values, **options)
    parts = zip((2.0, -3.0, 0.5), losses, ("loss", "temperature", "top_p"), strict=True)
    total = sum(
        (factor * part * torch.arange(1.0, part.numel() + 1).reshape(part.shape)).sum()
        for factor, part, name in parts
        if name in used
    )
    leaves = [value for value in values if value.requires_grad]
    return [*losses, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(), (1,), (ROWS,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gives_what_the_registered_op_gives(leading, reduction, dtype, direct_calls, monkeypatch):
    for used in ("loss", "temperature", "top_p", "loss top_p"):
        values = shaped(leading, arguments(dtype))
        found = results(values, used, reduction=reduction)
        expected = dispatched(
            monkeypatch, lambda v=values, u=used: results(v, u, reduction=reduction)
        )
        # Reduced in double, and by torch in float32.
        tolerance = 0 if reduction == "none" else 1e-6
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=0)
            assert one.is_contiguous()
        assert direct_calls[:3] == [True, True, False]
        assert not any(direct_calls[3:])  # backward asks too, but where there are divisors
        direct_calls.clear()


@pytest.mark.parametrize("variant", ["released", "megatron"])
@pytest.mark.parametrize("cumulative", ["inclusive", "exclusive"])
def test_passes_on_every_option(variant, cumulative, direct_calls, monkeypatch):
    values = list(arguments())
    easy = values[0].argmax(-1)
    values[3] = torch.where(torch.arange(ROWS) < 2, easy, values[3])
    options = {
        "variant": variant,
        "cumulative": cumulative,
        "easy_token_drop": 0.5,
        "drop_uniform": torch.tensor([0.4, 0.6, 0.1, 0.1, 0.1, 0.1]),
        "steepness": 11.0,
        "temperature_clamp": 0.9,
        "top_p_temperature_clamp": 0.7,
        "mass_eps": 1e-3,
        "probability_eps": 1e-2,
        "ignore_index": int(values[3][4]),
        "reduction": "none",
    }
    values[3][3] = 5
    found = results(values, "loss", **options)
    expected = dispatched(monkeypatch, lambda: results(values, "loss", **options))
    assert all(map(torch.equal, found, expected))
    for name in options.keys() - {"reduction", "variant", "cumulative", "drop_uniform"}:
        others = {**options, name: 0.3 if name != "ignore_index" else IGNORE}
        changed = results(values, "loss", **others)
        assert not all(map(torch.equal, found, changed)), name
    assert direct_calls[:4] == [True, True, False, False]


def test_only_rows_that_count_divide_and_without_any_the_loss_is_zero(direct_calls):
    logits, temperature, top_p, labels = arguments()
    mean = losses_of(logits, temperature, top_p, labels)
    total = losses_of(logits, temperature, top_p, labels, reduction="sum")
    torch.testing.assert_close(mean.top_p_loss * (ROWS - 1), total.top_p_loss)
    nothing = losses_of(logits, temperature, top_p, torch.full_like(labels, IGNORE))
    gradients = torch.autograd.grad(nothing.loss, (temperature, top_p))
    assert nothing.loss == 0 and not any(gradient.any() for gradient in gradients)
    assert direct_calls == [True] * 4


def test_derivatives_that_are_unusual_are_left_to_torch(direct_calls, monkeypatch):
    logits, temperature, top_p, labels = arguments()
    spread = torch.linspace(1, 2, 2 * ROWS)[::2]
    negated = torch._neg_view(-torch.linspace(1, 2, ROWS))
    for given in (spread, negated):
        loss = losses_of(logits, temperature, top_p, labels, reduction="none").loss
        found = torch.autograd.grad(loss, (temperature, top_p), given, retain_graph=True)
        expected = torch.autograd.grad(loss, (temperature, top_p), given.clone().resolve_neg())
        assert all(map(torch.equal, found, expected))
    assert direct_calls == [True, False, True] * 2


def test_a_second_derivative_still_raises(direct_calls):
    logits, temperature, top_p, labels = arguments()
    loss = losses_of(logits, temperature, top_p, labels).loss
    (gradient,) = torch.autograd.grad(loss, temperature, create_graph=True)
    with pytest.raises(RuntimeError, match="must be differentiated once"):
        gradient.sum().backward()
    assert direct_calls == [True]


def test_an_invalid_row_is_named_or_nan(direct_calls):
    logits, temperature, top_p, labels = arguments()
    logits[2, 5] = torch.nan
    with pytest.raises(ValueError, match=r"autodeco_loss: logits must not contain NaN.* in row 2"):
        losses_of(logits, temperature, top_p, labels)
    losses = losses_of(logits, temperature, top_p, labels, check=False, reduction="none")
    assert losses.loss.isnan().nonzero().tolist() == [[2]]
    assert direct_calls == [False, False]


def test_what_somebody_watches_is_left_to_the_registered_op(direct_calls):
    class Dispatches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    logits, temperature, top_p, labels = arguments()
    with Dispatches():
        losses_of(logits, temperature, top_p, labels)
    with torch.profiler.profile() as profile:
        losses_of(logits, temperature, top_p, labels)
    assert "autodeco_ext::autodeco_loss_rows" in {event.key for event in profile.key_averages()}
    losses_of(logits, torch.nn.Parameter(temperature.detach()), top_p, labels)
    losses_of(logits.requires_grad_(), temperature, top_p, labels)
    assert direct_calls == [False] * 3  # the last one does not ask


def test_threads_do_not_change_a_row(direct_calls):
    logits, temperature, top_p, labels = (value.repeat_interleave(20, 0) for value in arguments())
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(losses_of(logits, temperature, top_p, labels, reduction="none").loss)
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert direct_calls == [True, True]

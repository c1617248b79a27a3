"""The released implementation's vectors, reproduced by the reference, the ops and the heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import autodeco_ext
from autodeco_ext import reference
from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads

FILES = sorted((Path(__file__).parent / "vectors").glob("*.safetensors"))
HEADS = ("temp_head", "top_p_head")
LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def vectors(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    tensors = load_file(request.param)
    for name, value in tensors.items():  # released per-position tensors are [batch, seq, 1]
        if name in ("temperature", "top_p") or name.endswith(("_d_temperature", "_d_top_p")):
            tensors[name] = value[..., 0]
    return tensors


def head_weights(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in vectors.items() if name.startswith(HEADS)}


def make_heads(vectors: dict[str, Tensor]) -> AutoDecoHeads:
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=vectors["hidden"].shape[-1]))
    heads.load_state_dict(head_weights(vectors))
    return heads


def assert_gradient_close(got: Tensor, expected: Tensor, relative: float) -> None:
    """Relative to the tensor's largest element: single ones cancel to zero in either."""
    error = (got.double() - expected.double()).abs().max()
    assert error <= relative * expected.abs().max().clamp(min=1e-30), float(error)


def sorted_within_ties(gradient: Tensor, logits: Tensor) -> Tensor:
    """The gradient by descending logit, and among equal logits by its own value.

    The released sort is not stable: which of several equal logits comes first, and so gets which of
    their gradients, is arbitrary there and index order here.
    """
    by_value = gradient.argsort(dim=-1)
    by_logit = logits.gather(-1, by_value).argsort(dim=-1, descending=True, stable=True)
    return gradient.gather(-1, by_value.gather(-1, by_logit))


def shifted_loss(
    vectors: dict[str, Tensor], logits, temperature, top_p, loss=reference.autodeco_loss
):
    """Position t is scored on labels[t + 1], the last one not at all."""
    return loss(
        logits[:, :-1],
        temperature[:, :-1],
        top_p[:, :-1],
        vectors["labels"][:, 1:],
        drop_uniform=vectors["drop_uniform"],
    )


def test_there_are_vectors_of_both_dtypes() -> None:
    assert len(FILES) == 3
    assert {load_file(path)["logits"].dtype for path in FILES} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_predicts_the_released_temperature_and_top_p(vectors, dtype) -> None:
    hidden = vectors["hidden"].to(dtype)
    got = reference.head_predictions(hidden, vectors["logits"], head_weights(vectors))
    assert got.temperature.dtype == got.top_p.dtype == dtype
    for name, value in got._asdict().items():
        torch.testing.assert_close(value.float(), vectors[name], rtol=1e-5, atol=1e-5)


def test_the_heads_predict_the_released_temperature_and_top_p(vectors, device) -> None:
    with torch.no_grad():
        heads = make_heads(vectors).to(device)
        got = heads(vectors["hidden"].to(device), vectors["logits"].to(device))
    for name, value in got._asdict().items():
        torch.testing.assert_close(value.cpu(), vectors[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("op", [reference.distribution_stats, autodeco_ext.distribution_stats])
def test_the_statistics_are_the_released_ones(vectors, op, device) -> None:
    got = op(vectors["logits"].to(device), vectors["temperature"].to(device)).float().cpu()
    expected = vectors["stats"]
    largest, entropy, variance, top5 = range(4)
    for column in (largest, variance, top5):
        torch.testing.assert_close(got[..., column], expected[..., column], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(got[..., entropy], expected[..., entropy], rtol=0, atol=1e-5)


def assert_losses_and_gradients_are_released(
    vectors: dict[str, Tensor], loss, leaves: tuple[Tensor, Tensor, Tensor], relative: float
) -> None:
    """loss: what shifted_loss returned for the leaves logits, temperature, top_p."""
    logits, temperature, top_p = leaves
    of_logits = max(relative, torch.finfo(logits.dtype).eps)  # which it is rounded to
    for name in ("temp_loss", "top_p_loss"):
        part = loss.temperature_loss if name == "temp_loss" else loss.top_p_loss
        assert part.item() == pytest.approx(vectors[f"{name}_f64"].item(), rel=relative)
        assert part.item() == pytest.approx(vectors[name].item(), rel=1e-4)
        gradients = torch.autograd.grad(
            part, (temperature, top_p, logits), retain_graph=True, allow_unused=True
        )
        for argument, got in zip(("temperature", "top_p", "logits"), gradients, strict=True):
            key = f"d_{name}_d_{argument}"
            if key in vectors and argument == "logits":
                got, expected = (sorted_within_ties(g, logits) for g in (got, vectors[key]))
                assert_gradient_close(got, expected, of_logits)
            elif key in vectors:
                assert_gradient_close(got, vectors[key], relative)
            else:  # not in the file: the temperature loss has no top_p, V = 32003 no logits
                assert got is None or argument == "logits" or (got == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_losses_and_their_gradients_are_the_released_ones(vectors, dtype) -> None:
    leaves = tuple(
        vectors[name].to(dtype).requires_grad_() for name in ("logits", "temperature", "top_p")
    )
    loss = shifted_loss(vectors, *leaves)
    assert loss.loss.dtype == dtype
    assert_losses_and_gradients_are_released(vectors, loss, leaves, LOSS_TOLERANCE[dtype])


def test_the_loss_op_and_its_gradients_are_the_released_ones(vectors, backend) -> None:
    leaves = tuple(
        vectors[name].clone().requires_grad_() for name in ("logits", "temperature", "top_p")
    )
    loss = shifted_loss(vectors, *leaves, autodeco_ext.autodeco_loss)
    assert_losses_and_gradients_are_released(vectors, loss, leaves, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_trains_the_weights_as_released(vectors, dtype) -> None:
    weights = {k: v.to(dtype).requires_grad_() for k, v in head_weights(vectors).items()}
    predictions = reference.head_predictions(
        vectors["hidden"].to(dtype), vectors["logits"], weights
    )
    shifted_loss(vectors, vectors["logits"], *predictions).loss.backward()
    for name, weight in weights.items():
        # The file's gradients were computed in float32, whatever we compute in.
        assert_gradient_close(weight.grad, vectors[f"grad.{name}"], 1e-4)


def test_the_heads_train_their_weights_as_released(vectors) -> None:
    heads = make_heads(vectors)
    predictions = heads(vectors["hidden"], vectors["logits"])
    shifted_loss(vectors, vectors["logits"], *predictions).loss.backward()
    for name, weight in heads.named_parameters():
        assert_gradient_close(weight.grad, vectors[f"grad.{name}"], 1e-4)

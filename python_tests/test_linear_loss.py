"""linear_autodeco_loss: chunks change nothing, gradients are the reference's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from linear_loss_case import (
    CHUNKS,
    CHUNKS_NORM,
    GRADIENT,
    HIDDEN,
    LOSS,
    VOCAB,
    Case,
    assert_all_close,
    module_of,
)
from torch import Tensor, nn

import autodeco_ext
from autodeco_ext import AutoDecoHeads, linear_autodeco_loss, reference
from autodeco_ext._linear_loss_autograd import heads_bytes


def soft_cap(logits: Tensor) -> Tensor:
    return 3 * torch.tanh(logits / 3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("variant", ["released", "megatron"])
@pytest.mark.parametrize("enhanced", [True, False])
def test_loss_and_gradients_are_those_of_the_reference(reduction, variant, enhanced) -> None:
    case = Case(use_enhanced_features=enhanced)
    options = {"reduction": reduction, "variant": variant, "cumulative": "exclusive"}
    got = case.loss(chunk_size=3, **options)
    expected, gradients = case.expected(**options)
    torch.testing.assert_close(got.loss, expected.float(), **LOSS)
    assert torch.equal(got.loss, got.temperature_loss + got.top_p_loss)
    heads = len(list(case.heads.parameters()))
    assert_all_close(case.gradients(got.loss), gradients[:heads], **GRADIENT)


def test_any_weighting_of_the_positions_is_right() -> None:
    case, weight = Case(), torch.linspace(-1, 2, 14).reshape(2, 7)
    got = case.loss(chunk_size=4, reduction="none")
    assert got.loss.shape == (2, 7) and (got.loss[case.labels == -100] == 0).all()
    mixed = (weight * got.temperature_loss - 3 * weight**2 * got.top_p_loss).sum()
    expected, gradients = case.expected(
        lambda loss: (weight * loss.temperature_loss - 3 * weight**2 * loss.top_p_loss).sum(),
        reduction="none",
    )
    torch.testing.assert_close(mixed, expected.float(), **LOSS)
    got_gradients = case.gradients(mixed)
    assert_all_close(got_gradients, gradients[: len(got_gradients)], **GRADIENT)


@pytest.mark.parametrize("train_base", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_chunk_size_changes_nothing(train_base: bool, dtype: torch.dtype) -> None:
    case = Case()
    case.hidden, case.weight = case.hidden.to(dtype), case.weight.to(dtype)
    leaves = [case.hidden.requires_grad_(), case.weight.requires_grad_()] if train_base else []
    results = []
    everything = case.labels.numel()
    for options in (*({"chunk_size": size} for size in (1, 7, everything)), {"max_chunk_bytes": 1}):
        loss = case.loss(train_base=train_base, **options)
        results.append([*loss, *case.gradients(loss.loss, *leaves)])
    for other in results[1:]:
        own = len(other) - len(leaves)  # the losses and the gradients of the heads are float32
        assert_all_close(other[:own], results[0][:own], **CHUNKS)
        for one, first in zip(other[own:], results[0][own:], strict=True):
            difference = (one.float() - first.float()).norm()
            assert one.dtype == dtype and difference <= CHUNKS_NORM[dtype] * first.float().norm()


def test_the_callers_bytes_bound_the_chunks_of_backward_too(monkeypatch) -> None:
    case = Case()
    rows: list[int] = []
    predict = type(case.heads).predict_temperature

    def see(heads: AutoDecoHeads, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return predict(heads, hidden)

    monkeypatch.setattr(type(case.heads), "predict_temperature", see)
    for number, most in ((1, 1), (4, 4), (1000, 9)):
        loss = case.loss(max_chunk_bytes=number * heads_bytes(case.heads), chunk_size=9).loss
        rows.clear()
        loss.backward()
        assert sum(rows) == 9 and max(rows) <= most, number


def test_micro_batches_add_up_to_the_batch() -> None:
    torch.manual_seed(1)
    case, rows = Case(), 8
    hidden, labels = torch.randn(rows, 5, HIDDEN), torch.randint(0, VOCAB, (rows, 5))
    labels[:, 0], labels[3] = -100, -100
    uniform, items = torch.rand(rows, 5), int((labels != -100).sum())
    results = []
    for size in (8, 4, 2):  # 1 x 8, 2 x 4, accumulated over 4
        case.heads.zero_grad()
        total = torch.zeros(())
        for part in torch.arange(rows).split(size):
            loss = linear_autodeco_loss(
                hidden[part],
                case.weight,
                case.heads,
                labels[part],
                drop_uniform=uniform[part],
                num_items_in_batch=torch.tensor(items) if size == 2 else items,
            ).loss
            loss.backward()
            total += loss.detach()
        results.append([total, *(one.grad.clone() for one in case.heads.parameters())])
    assert_all_close(results[1], results[0], **CHUNKS)
    assert_all_close(results[2], results[0], **CHUNKS)


class CountingHead(nn.Linear):
    """An LM head that counts the rows it multiplies."""

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows = getattr(self, "rows", 0) + len(hidden)
        return super().forward(hidden)


def test_a_frozen_lm_head_is_multiplied_once_and_with_labelled_rows_only() -> None:
    case, lm_head = Case(), CountingHead(HIDDEN, VOCAB)
    loss = linear_autodeco_loss(case.hidden, lm_head, case.heads, case.labels, chunk_size=2).loss
    loss.backward()
    assert lm_head.rows == int((case.labels != -100).sum()) == 9
    assert lm_head.weight.grad is None and case.heads.temp_head.mlp[0].weight.grad is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("as_module", [True, False])
@pytest.mark.parametrize("transform", [None, soft_cap])
def test_joint_gradients_are_those_of_the_reference(bias, as_module, transform) -> None:
    case = Case(bias=bias)
    module = module_of(case)
    given = {"lm_head": module} if as_module else {"lm_head": module.weight, "bias": module.bias}
    case.hidden.requires_grad_()
    got = case.loss(**given, train_base=True, logits_transform=transform, chunk_size=4).loss
    options = {} if transform is None else {"transform": transform}
    expected, gradients = case.expected(**options)
    torch.testing.assert_close(got, expected.float(), **LOSS)
    leaves = [case.hidden, *module.parameters()]
    assert_all_close(case.gradients(got, *leaves), gradients, **GRADIENT)


def test_the_base_trains_on_cuda_as_on_the_cpu(cuda: torch.device) -> None:
    results = []
    for device in (torch.device("cpu"), cuda):
        case = Case(bias=True)
        for name in ("hidden", "weight", "bias", "labels", "uniform"):
            setattr(case, name, getattr(case, name).to(device))
        case.heads.to(device)
        leaves = [case.hidden.requires_grad_(), case.weight.requires_grad_()]
        loss = case.loss(train_base=True, chunk_size=4).loss
        results.append([loss.cpu(), *(one.cpu() for one in case.gradients(loss, *leaves))])
    assert_all_close(results[1], results[0], **GRADIENT)


def test_only_what_requires_grad_gets_a_joint_gradient() -> None:
    case, expected = Case(bias=True), Case(bias=True).expected()[1]
    case.weight.requires_grad_()
    case.heads.requires_grad_(False)
    (gradient,) = torch.autograd.grad(case.loss(train_base=True).loss, [case.weight])
    torch.testing.assert_close(gradient, expected[-2].float(), **GRADIENT)
    case = Case(enable_temperature_head=False, enable_top_p_head=False)
    case.hidden.requires_grad_()
    case.loss(train_base=True).loss.backward()
    assert case.hidden.grad.abs().sum() > 0 and (case.hidden.grad[case.labels == -100] == 0).all()


def test_a_frozen_base_gets_no_gradient() -> None:
    case = Case(bias=True)
    module = module_of(case)
    case.hidden.requires_grad_()
    case.loss(module).loss.backward()
    assert case.hidden.grad is None and module.weight.grad is None and module.bias.grad is None
    off = Case(enable_temperature_head=False, enable_top_p_head=False)
    off.hidden.requires_grad_()
    assert not off.loss().loss.requires_grad


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_a_head_that_is_off_predicts_one_and_the_other_trains(name: str) -> None:
    case = Case(**{f"enable_{name}_head": False})
    logits = F.linear(case.hidden, case.weight)
    got = case.loss()
    predicted = case.heads(case.hidden, logits)
    direct = reference.autodeco_loss(logits, *predicted, case.labels, drop_uniform=case.uniform)
    # A top-p loss at P = 1 would be the temperature loss once more.
    expected = direct.loss if name == "temperature" else direct.temperature_loss
    torch.testing.assert_close(got.loss, expected, **LOSS)
    torch.testing.assert_close(got.loss, got.temperature_loss + got.top_p_loss, rtol=0, atol=0)
    assert_all_close(case.gradients(got.loss), case.gradients(expected), **GRADIENT)


def test_a_transform_may_narrow_the_vocabulary() -> None:
    case = Case()
    case.labels.clamp_(max=29)
    got = case.loss(logits_transform=lambda logits: logits[:, :30]).loss
    expected, gradients = case.expected(transform=lambda logits: logits[..., :30])
    torch.testing.assert_close(got, expected.float(), **LOSS)
    assert_all_close(case.gradients(got), gradients[:8], **GRADIENT)


def test_a_transform_may_work_in_place() -> None:
    case = Case()
    case.weight.requires_grad_()
    results = []
    for transform in (lambda logits: logits * 2, lambda logits: logits.mul_(2)):
        loss = case.loss(train_base=True, logits_transform=transform, chunk_size=4).loss
        results.append([loss, *case.gradients(loss, case.weight)])
    assert_all_close(results[1], results[0], rtol=0, atol=0)


def test_tied_weights_get_both_gradients() -> None:
    case = Case()
    embedding = nn.Embedding(VOCAB, HIDDEN)
    lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
    lm_head.weight = embedding.weight
    ids = torch.arange(14).reshape(2, 7)

    def loss_of(hidden: Tensor) -> Tensor:
        return linear_autodeco_loss(
            hidden, lm_head, case.heads, case.labels, drop_uniform=case.uniform, train_base=True
        ).loss

    (tied,) = torch.autograd.grad(loss_of(embedding(ids)), [embedding.weight])
    hidden = embedding(ids).detach().requires_grad_()
    of_head, of_hidden = torch.autograd.grad(loss_of(hidden), [lm_head.weight, hidden])
    of_embedding = torch.zeros_like(tied).index_add(0, ids.flatten(), of_hidden.flatten(0, 1))
    torch.testing.assert_close(tied, of_head + of_embedding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_bases_are_read_as_they_are(dtype: torch.dtype) -> None:
    case = Case()
    case.hidden, case.weight = case.hidden.to(dtype), case.weight.to(dtype).requires_grad_()
    logits = F.linear(case.hidden, case.weight)
    temperature, top_p = case.heads(case.hidden, logits)
    expected = reference.autodeco_loss(
        logits.float(), temperature, top_p, case.labels, drop_uniform=case.uniform
    ).loss
    got = case.loss(train_base=True, chunk_size=4).loss
    torch.testing.assert_close(got, expected, **LOSS)
    *of_heads, of_weight = case.gradients(got, case.weight)
    *expected_heads, expected_weight = case.gradients(expected, case.weight)
    assert_all_close(of_heads, expected_heads, **GRADIENT)
    assert of_weight.dtype == dtype
    scale = expected_weight.float().abs().max()  # of 16-bit dL/dlogits on both sides
    assert (of_weight.float() - expected_weight.float()).abs().max() < 0.02 * scale


def test_autocast_holds_in_backward_too() -> None:
    case = Case()
    case.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cast = case.loss(train_base=True).loss
    (of_cast,) = torch.autograd.grad(cast, case.weight)
    dtypes: list[torch.dtype] = []

    def see(logits: Tensor) -> Tensor:
        dtypes.append(logits.dtype)
        return logits

    with torch.autocast("cpu", torch.bfloat16):
        seen = case.loss(train_base=True, logits_transform=see).loss
    seen.backward()
    assert dtypes == [torch.bfloat16] * 2 and of_cast.dtype == torch.float32
    torch.testing.assert_close(case.weight.grad, of_cast)


def test_slices_are_read_where_they_are() -> None:
    case = Case()
    expected = case.loss(reduction="sum").loss
    wide = torch.full((2, 9, HIDDEN + 3), torch.nan)
    wide[:, 1:8, :HIDDEN] = case.hidden
    case.hidden = wide[:, 1:8, :HIDDEN]
    assert torch.equal(case.loss(reduction="sum").loss, expected)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_leading_dimensions(shape: tuple[int, ...], reduction: str) -> None:
    case = Case()
    labels = torch.full(shape, 3)
    hidden = torch.randn(*shape, HIDDEN)
    loss = linear_autodeco_loss(hidden, case.weight, case.heads, labels, reduction=reduction).loss
    assert loss.shape == (shape if reduction == "none" else ())
    loss.sum().backward()
    assert case.heads.temp_head.mlp[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_a_label_the_loss_is_a_differentiable_zero(reduction: str) -> None:
    case = Case()
    case.labels.fill_(-100)
    case.hidden.fill_(torch.nan)
    loss = case.loss(reduction=reduction).loss.sum()
    loss.backward()
    assert loss == 0 and all((one.grad == 0).all() for one in case.heads.parameters())
    assert case.loss(num_items_in_batch=0).loss == 0


def test_easy_tokens_are_drawn_as_by_the_loss_of_all_logits() -> None:
    case = Case()
    logits = F.linear(case.hidden, case.weight)
    case.labels = torch.where(case.labels == -100, case.labels, logits.argmax(-1))
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(case.loss(drop_uniform=None).loss)
    torch.manual_seed(5)
    direct = autodeco_ext.autodeco_loss(logits, *case.heads(case.hidden, logits), case.labels).loss
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], direct, **LOSS)
    assert case.loss(drop_uniform=None).loss != losses[0]
    torch.manual_seed(5)
    case.loss(drop_uniform=None, easy_token_drop=0.0)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)  # nothing to drop draws nothing


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("train_base", [False, True])
def test_a_compiled_caller_gets_the_same(train_base: bool, backend: str) -> None:
    case = Case(bias=True)
    module = module_of(case)
    leaves = [case.hidden.requires_grad_(), *module.parameters()] if train_base else []

    def step(hidden: Tensor) -> Tensor:
        loss = linear_autodeco_loss(
            2 * hidden,
            module,
            case.heads,
            case.labels,
            drop_uniform=case.uniform,
            train_base=train_base,
        )
        return loss.loss * 3

    expected = step(case.hidden)
    got = torch.compile(step, backend=backend)(case.hidden)
    torch.testing.assert_close(got, expected)
    gradients = [case.gradients(loss, *leaves) for loss in (got, expected)]
    assert_all_close(*gradients, rtol=0, atol=0)


def test_a_full_graph_is_refused_with_the_reason() -> None:
    case = Case()
    with pytest.raises(RuntimeError, match="number of positions with a label is known at run time"):
        torch.compile(lambda: case.loss().loss, backend="eager", fullgraph=True)()


@pytest.mark.parametrize("train_base", [False, True])
def test_a_second_derivative_is_an_error(train_base: bool) -> None:
    case = Case()
    case.hidden.requires_grad_()
    loss = case.loss(train_base=train_base).loss
    (first, *_) = torch.autograd.grad(loss, [*case.heads.parameters()], create_graph=True)
    with pytest.raises(RuntimeError, match=r"linear_autodeco_loss: must be differentiated once"):
        first.sum().backward()


def test_weights_changed_before_backward_are_an_error() -> None:
    case = Case()
    loss = case.loss().loss
    with torch.no_grad():
        case.heads.temp_head.mlp[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
